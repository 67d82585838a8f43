"""open_clip's byte-pair tokenizer in the terms of Hugging Face's tokenizers: the same pieces, the same ids.

open_clip cleans texts with ftfy first. What ftfy does character by character (ligatures, wide characters, curly quotes, control
characters, NFC) is in the tokenizer too; what needs a look at the whole text is not: broken encodings are not repaired and HTML
entities are not decoded. A text without either gives the same ids.
"""

from __future__ import annotations

from typing import Any

import open_clip
from ftfy import chardata

from sightline.models.interchange.extras import need
from sightline.models.text import END, OPEN_CLIP_BPE, START

START_PIECE, END_PIECE = "<|startoftext|>", "<|endoftext|>"  # as CLIP's tokenizers are spelled outside open_clip; nobody types them
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # CLIP's, as in open_clip


def build(name: str, extra: str) -> Any:
    """A `tokenizers.Tokenizer`: start, the pieces, end; without padding and truncation.

    Raises:
        ValueError: the artifact has another tokenizer.
        ModuleNotFoundError: tokenizers is not installed; the message names the extra.
    """
    if name != OPEN_CLIP_BPE:
        raise ValueError(f"the tokenizer {name!r} cannot be exported; only {OPEN_CLIP_BPE!r} can")
    library = need("tokenizers", extra)
    normalizers, pre_tokenizers = library.normalizers, library.pre_tokenizers
    simple = open_clip.SimpleTokenizer()
    renamed = {"<start_of_text>": START_PIECE, "<end_of_text>": END_PIECE}
    vocabulary = {renamed.get(piece, piece): i for piece, i in simple.encoder.items()}
    tokenizer = library.Tokenizer(library.models.BPE(vocab=vocabulary, merges=list(simple.bpe_ranks), end_of_word_suffix="</w>"))
    plain = {chr(wide): narrow for table in (chardata.LIGATURES, chardata.WIDTH_MAP) for wide, narrow in table.items()}
    controls = "".join(f"\\x{{{code:x}}}" for code in chardata.CONTROL_CHARS)
    tokenizer.normalizer = normalizers.Sequence(
        [
            *(normalizers.Replace(odd, usual) for odd, usual in plain.items()),
            normalizers.Replace(library.Regex(chardata.SINGLE_QUOTE_RE.pattern), "'"),
            normalizers.Replace(library.Regex(chardata.DOUBLE_QUOTE_RE.pattern), '"'),
            normalizers.Replace(library.Regex(f"[{controls}]"), ""),
            normalizers.NFC(),
            normalizers.Replace(library.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(library.Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single=f"{START_PIECE} $A {END_PIECE}", special_tokens=[(START_PIECE, START), (END_PIECE, END)]
    )
    return tokenizer
