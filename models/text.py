"""Text: tokens, and the one tower that open_clip lacks.

`BagOfWords` is the mean of its words' embeddings (as in FastText and DAN): it knows no order, trains in seconds, and what
it learnt of "red" and of "three" adds up to "red three", also where it never saw them together.
"""

from __future__ import annotations

from collections.abc import Callable

import open_clip
from torch import Tensor, nn

Tokenizer = Callable[[list[str]], Tensor]

OPEN_CLIP_BPE = "open_clip/bpe_simple_vocab_16e6"
START, END = 49406, 49407  # special tokens of open_clip's byte-pair vocabulary; padding is 0


def get_tokenizer(name: str, context_length: int) -> Tokenizer:
    """The tokenizer of that name: texts → int64 tokens [N, context_length].

    Raises:
        ValueError: the name is unknown.
    """
    if name == OPEN_CLIP_BPE:
        return open_clip.SimpleTokenizer(context_length=context_length)
    raise ValueError(f"unknown tokenizer {name!r}; this version knows {OPEN_CLIP_BPE!r}")


class BagOfWords(nn.Module):
    """Mean of the token embeddings of a text, then one linear projection: [N, context] → [N, output_dim]."""

    def __init__(self, *, width: int, output_dim: int, context_length: int, vocab_size: int = END + 1) -> None:
        super().__init__()
        self.context_length, self.vocab_size = context_length, vocab_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.text_projection = nn.Linear(width, output_dim, bias=False)
        # Small, so that a word which training never meets says nothing rather than something random.
        nn.init.normal_(self.token_embedding.weight, std=0.001)
        nn.init.normal_(self.text_projection.weight, std=width**-0.5)

    def forward(self, tokens_NT: Tensor) -> Tensor:
        word_NT = (tokens_NT != 0) & (tokens_NT != START) & (tokens_NT != END)
        total_NW = (self.token_embedding(tokens_NT) * word_NT.unsqueeze(-1)).sum(1)
        return self.text_projection(total_NW / word_NT.sum(1, keepdim=True).clamp(min=1))
