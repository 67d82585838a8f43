"""What CLIP is measured against (Radford et al. 2021, figure 2): models that predict an image's caption instead of recognising it.

    words       the caption's words in any order, by one linear layer on the image's embedding (Joulin et al. 2016)
    captions    the caption word by word, by a causal decoder that looks at the image's tokens

Both are called with images and texts, and give how surprising each text is after its image: nats a token, the mean over the text's
tokens. So one objective trains both, and of several texts the least surprising one is the answer of a zero-shot classifier.

Legend: B pairs, T tokens, V vocabulary, W width, D embedding, P places of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from sightline.models.preprocess import Preprocess
from sightline.models.text import END, START, Tokenizer
from sightline.models.zeroshot import fill

VOCABULARY = END + 1


class Predictor(nn.Module):
    """An image tower and what reads texts off it: pairs of an image [B, 3, H, W] and a text [B, T] → nats a token [B]."""

    def __init__(self, visual: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.visual, self.text = visual, text

    def forward(self, image_BCHW: Tensor, tokens_BT: Tensor) -> Tensor:
        nats_B: Tensor = self.text(self.encode(image_BCHW), tokens_BT)
        return nats_B

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """What of the images the texts are predicted from, [B, ...]."""
        encoded: Tensor = places(self.visual, image_BCHW) if isinstance(self.text, Captions) else self.visual(image_BCHW)
        return encoded


class Words(nn.Module):
    """Softmax over the vocabulary; the text's tokens share the target evenly."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.words = nn.Linear(embed_dim, VOCABULARY)
        nn.init.normal_(self.words.weight, std=embed_dim**-0.5)

    def forward(self, image_BD: Tensor, tokens_BT: Tensor) -> Tensor:
        nats_BV = -self.words(image_BD).float().log_softmax(-1)
        word_BT = (tokens_BT != 0) & (tokens_BT != START) & (tokens_BT != END)
        return (nats_BV.gather(1, tokens_BT) * word_BT).sum(1) / word_BT.sum(1).clamp(min=1)


class Captions(nn.Module):
    """A causal transformer over the text that attends to the image's tokens; words in and words out have the same embedding."""

    def __init__(self, channels: int, *, width: int, heads: int, layers: int, context_length: int) -> None:
        super().__init__()
        self.image_projection = nn.Linear(channels, width)
        self.token_embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(
            nn.TransformerDecoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)

    def forward(self, image_BPC: Tensor, tokens_BT: Tensor) -> Tensor:
        image_BPW = self.image_projection(image_BPC)
        seen_BT, next_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]
        length = seen_BT.shape[1]
        text_BTW = self.token_embedding(seen_BT) + self.position[:length]
        future_TT = torch.ones(length, length, dtype=torch.bool, device=tokens_BT.device).triu(1)
        for block in self.blocks:
            text_BTW = block(text_BTW, image_BPW, tgt_mask=future_TT)
        logits_BTV = F.linear(self.norm(text_BTW), self.token_embedding.weight).float()
        nats_BT = F.cross_entropy(logits_BTV.flatten(0, 1), next_BT.flatten(), reduction="none", ignore_index=0).view_as(next_BT)
        return nats_BT.sum(1) / (next_BT != 0).sum(1).clamp(min=1)


def build_predictor(visual: nn.Module, embed_dim: int, text: Mapping[str, Any]) -> Predictor:
    """The model that `text={"predicts": "words" or "captions", ...}` describes, on an open_clip image tower.

    Raises:
        ValueError: it predicts something else, lacks a setting, or the image tower has no tokens to look at.
    """
    options = dict(text)
    what = options.pop("predicts")
    try:
        if what == "words":
            options.pop("context_length", None)
            return Predictor(visual, Words(embed_dim, **options))
        if what == "captions":
            return Predictor(visual, Captions(places_width(visual), **options))
    except TypeError as error:  # an unknown setting, or one too few
        raise ValueError(f"model.text cannot be built: {error}") from error
    raise ValueError(f"model.text.predicts={what!r}; give words or captions")


def places_width(visual: nn.Module) -> int:
    """Channels of `places`.

    Raises:
        ValueError: the image tower is of another kind.
    """
    if isinstance(visual, TimmModel):
        return int(visual.trunk.num_features)
    if isinstance(visual, VisionTransformer):
        return int(visual.conv1.out_channels)
    raise ValueError("captions need an image tower with tokens: open_clip's ViT, or any of timm's (model.vision.timm_model_name)")


def places(visual: nn.Module, image_BCHW: Tensor) -> Tensor:
    """The image tower's own tokens or places of its map, [B, P, channels], before they are pooled."""
    if isinstance(visual, VisionTransformer):
        found = visual.forward_intermediates(image_BCHW, indices=1, normalize_intermediates=True, output_fmt="NLC")
        last: Tensor = found["image_intermediates"][-1]
        return last
    assert isinstance(visual, TimmModel)
    features: Tensor = visual.trunk.forward_features(image_BCHW)
    if features.ndim == 3:
        return features
    # A Swin's map has its channels last; every other map has them first.
    return features.flatten(1, 2) if features.shape[-1] == places_width(visual) else features.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class TrainedPredictor:
    """A predictive model ready for use: all that evaluation knows about it.

    Attributes:
        network: in evaluation mode.
        preprocess: image bytes → uint8 pixels → normalised input.
        tokenizer: texts → int64 tokens [N, context length].
        name: what people call it.
        revision: sha256 of its weights.
        templates: prompt templates with `{}` for the label.
        classes: the class names of the corpus that it was trained on, where it is known.
    """

    network: Predictor
    preprocess: Preprocess
    tokenizer: Tokenizer
    name: str
    revision: str
    templates: tuple[str, ...]
    classes: tuple[str, ...]

    @torch.inference_mode()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """What the network predicts texts from, of uint8 pixels [B, 3, size, size]."""
        device = next(self.network.parameters()).device
        return self.network.encode(self.preprocess.normalise(image_BCHW.to(device)))

    @torch.inference_mode()
    def surprise(self, encoded: Tensor, texts: Sequence[str]) -> Tensor:
        """Nats a token [B] of one text an image."""
        device = next(self.network.parameters()).device
        nats_B: Tensor = self.network.text(encoded.to(device), trimmed(self.tokenizer(list(texts))).to(device)).cpu()
        return nats_B

    def logits(self, encoded: Tensor, labels: Sequence[str]) -> Tensor:
        """How well each label's prompts fit each image [B, L]: minus the mean surprise over the templates."""
        prompts = fill(labels, self.templates)
        per_prompt = torch.stack([-self.surprise(encoded, [prompt] * len(encoded)) for prompt in prompts], dim=1)
        return per_prompt.unflatten(1, (len(labels), len(self.templates))).mean(2)


def trimmed(tokens_BT: Tensor) -> Tensor:
    """The tokens up to the longest text's last one: padding costs arithmetic and says nothing."""
    return tokens_BT[:, : max(2, int((tokens_BT != 0).sum(1).max()))]
