"""A dual-encoder model ready for use: all that evaluation, serving and the dense readout know about a model.

Legend: B images, N texts, L labels, D embedding, C channels, H W pixels, h w the tower's own grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.models.preprocess import Preprocess
from sightline.models.text import Tokenizer
from sightline.models.towers import Towers
from sightline.models.zeroshot import PLAIN_TEMPLATES, fill


@dataclass(frozen=True)
class Clip:
    """Two towers, how bytes become their input, and where they came from.

    Attributes:
        towers: an `open_clip.CustomTextCLIP` (or `CLIP`) in evaluation mode.
        preprocess: image bytes → uint8 pixels → normalised input.
        tokenizer: texts → int64 tokens [N, context length].
        name: what people call it.
        revision: sha256 of its weights; answers carry it.
        templates: prompt templates with `{}` for the label.
        classes: the class names of the corpus that it was trained on, where it is known.
    """

    towers: Towers
    preprocess: Preprocess
    tokenizer: Tokenizer
    name: str
    revision: str
    templates: tuple[str, ...] = PLAIN_TEMPLATES
    classes: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(self.towers.parameters()).device

    @property
    def logit_scale(self) -> float:
        """exp of the learned log-temperature: logits = logit_scale · cosine."""
        return float(self.towers.logit_scale.detach().float().exp())

    @torch.inference_mode()
    def embed_images(self, image_BCHW: Tensor) -> Tensor:
        """Unit image embeddings [B, D] float32 of uint8 pixels [B, 3, size, size] (see `preprocess.pixels`)."""
        inputs = self.preprocess.normalise(image_BCHW.to(self.device))
        return F.normalize(self.towers.encode_image(inputs).float(), dim=-1)

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit text embeddings [N, D] float32.

        Raises:
            ValueError: there are no texts.
        """
        if not texts:
            raise ValueError("no texts were given; give at least one")
        return F.normalize(self.towers.encode_text(self.tokenizer(list(texts)).to(self.device)).float(), dim=-1)

    def classifier(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Zero-shot weights [L, D]: per label the normalised mean of its normalised prompts (Radford et al. 2021, 3.1.4).

        Raises:
            ValueError: there are no labels, or a template lacks `{}`.
        """
        templates = tuple(templates or self.templates)
        embedding = self.embed_texts(fill(labels, templates))
        return F.normalize(embedding.unflatten(0, (len(labels), len(templates))).mean(1), dim=-1)
