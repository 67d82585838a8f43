"""What the endpoints compute: one model, batches of images, and a cache of the labels' text embeddings. No Ray, no HTTP.

An answer does not depend on what else was in its batch, nor on whether the cache had its labels (but for rounding). An engine is called from one
thread at a time (see service.py), which is also what makes the cache single-flight.

Legend: B images, N texts, L labels, D embedding, C channels, H W pixels, S the tower's input size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.clip import Clip
from sightline.models.codec import decode_rgb
from sightline.models.segment import segment

# Text and image towers see at most this many inputs at once; it bounds memory, not answers.
CHUNK = 64

T = TypeVar("T")


class Engine:
    """A model and the embeddings of the labels that it was asked about last.

    Args:
        cached_labels: how many label embeddings are kept; at D = 512 each takes 2 kB.
    """

    def __init__(self, model: Clip, cached_labels: int = 10_000) -> None:
        self.model = model
        self._cached_labels = cached_labels
        self._label_D: OrderedDict[tuple[tuple[str, ...], str], Tensor] = OrderedDict()

    def rgb(self, data: bytes, max_pixels: int) -> NDArray[np.uint8]:
        """The decoded image [H, W, 3]; safe in any thread.

        Raises:
            ImageError: the bytes are no image, or one of more pixels.
        """
        return decode_rgb(data, max_pixels=max_pixels)

    def pixels(self, data: bytes, max_pixels: int) -> Tensor:
        """The tower's input uint8 [3, S, S] of an image file; safe in any thread.

        Raises:
            ImageError: the bytes are no image, or one of more pixels.
        """
        return self.model.preprocess.pixels(self.rgb(data, max_pixels))

    def embed_images(self, images: Sequence[Tensor]) -> Tensor:
        """Unit embeddings [B, D] of inputs from `pixels`."""
        parts = [self.model.embed_images(torch.stack(list(some))) for some in chunks(images)]
        return torch.cat(parts).cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, D]."""
        return torch.cat([self.model.embed_texts(some) for some in chunks(texts)]).cpu()

    def label_weights(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Zero-shot weights [L, D] of the labels; those asked about before come from the cache."""
        filled = tuple(templates or self.model.templates)
        keys = [(filled, label) for label in labels]
        found = {key: self._label_D[key] for key in keys if key in self._label_D}
        missing = [label for label in dict.fromkeys(labels) if (filled, label) not in found]
        # A label makes one prompt per template, so that chunks of labels hold about CHUNK prompts.
        for some in chunks(missing, max(1, CHUNK // len(filled))):
            for label, weight_D in zip(some, self.model.classifier(some, filled).cpu(), strict=True):
                found[filled, label] = weight_D
        for key in keys:
            self._label_D[key] = found[key]
            self._label_D.move_to_end(key)
        while len(self._label_D) > self._cached_labels:
            self._label_D.popitem(last=False)
        return torch.stack([found[key] for key in keys])

    def logits(self, image_D: Tensor, label_LD: Tensor) -> Tensor:
        """logit scale × cosine [L]."""
        return self.model.logit_scale * (label_LD @ image_D)

    def label_map(self, rgb_HWC: NDArray[np.uint8], labels: Sequence[str]) -> NDArray[np.uint8]:
        """The label of each pixel uint8 [H, W]: i + 1 for labels[i], 0 for the background.

        Raises:
            ValueError: the image tower cannot be read densely.
        """
        return segment(self.model, rgb_HWC, labels).label_map_HW


def chunks(items: Sequence[T], size: int = CHUNK) -> list[Sequence[T]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
