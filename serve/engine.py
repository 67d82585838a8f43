"""What the endpoints compute: one model, batches of images, and a memory of label embeddings. No Ray, no HTTP.

An answer does not depend on what else was in its batch, nor on whether its labels were remembered (but for rounding). An engine's
towers are used from one thread at a time (see service.py), which is also what keeps two requests from embedding one label twice.

Legend: B images, N texts, L labels, D embedding, C channels, H W pixels, S the tower's input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.clip import Clip
from sightline.models.codec import decode_rgb
from sightline.models.preprocess import resample, to_CHW
from sightline.models.remembering import RememberingClip, chunks
from sightline.models.segment import COMMON_STUFF, Segmentation, segment
from sightline.models.threads import on_one_thread
from sightline.models.zeroshot import BACKGROUND
from sightline.serve.precision import ImageTower

# Labels × pixels that a segmentation may score: its refinement holds 24 float32 copies of them, 0.8 GB at most. At the image's own
# size there is only the label map.
MAX_SCORES = 8_000_000


@dataclass(frozen=True)
class Enlarged:
    """A segmentation at an image's own size.

    Attributes:
        label_map_HW: uint8, as in `Segmentation`.
        small: what it was made of; `at` gives its row and column for each pixel of the image.
    """

    label_map_HW: NDArray[np.uint8]
    small: Segmentation
    at: tuple[NDArray[np.int64], NDArray[np.int64]]


class Engine:
    """A model that answers for many."""

    def __init__(self, model: Clip, tower: ImageTower | None = None) -> None:
        self.model = RememberingClip.of(model)
        self.tower = tower or ImageTower(model, "float32", 0.0)
        self._threads = ThreadPoolExecutor(thread_name_prefix="tower")
        self.dimension = int(self.embed_texts(["a"]).shape[-1])

    @property
    def classes(self) -> list[str]:
        """What the model was trained to tell apart, where that is known."""
        return [name for name in self.model.classes if name != BACKGROUND]

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
        """Unit embeddings [B, D] of inputs from `pixels`.

        On a CPU each thread takes a part of the batch through all layers. Threads that share each layer wait there for the slowest
        one: beside a process that wants a third of a core they were a tenth slower in float32, a quarter in bfloat16 (measured).
        """
        threads = min(torch.get_num_threads(), len(images))
        if threads < 2 or self.tower.model.device.type != "cpu":
            return self._embed(images)
        bounds = [len(images) * i // threads for i in range(threads + 1)]
        return torch.cat([*self._threads.map(self._embed_alone, [images[i:j] for i, j in pairwise(bounds)])])

    def _embed_alone(self, images: Sequence[Tensor]) -> Tensor:
        with on_one_thread():
            return self._embed(images)

    def _embed(self, images: Sequence[Tensor]) -> Tensor:
        return torch.cat([self.tower.model.embed_images(torch.stack(list(some))) for some in chunks(images)]).cpu()

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, D]."""
        return torch.cat([self.model.embed_texts(some) for some in chunks(texts)]).cpu()

    def label_weights(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Zero-shot weights [L, D] of the labels."""
        return self.model.classifier(labels, templates).cpu()

    def logits(self, image_D: Tensor, label_LD: Tensor) -> Tensor:
        """logit scale × cosine [L]."""
        return self.model.logit_scale * (label_LD @ image_D)

    def other_weights(self, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
        """Zero-shot weights [O, D] of what else may be there: the model's other classes, or what pictures are full of.

        Raises:
            ValueError: the labels are all of these.
        """
        others = [name for name in self.classes if name not in labels] or [name for name in COMMON_STUFF if name not in labels]
        if not others:
            raise ValueError("unknown: the labels are all that the best one could be compared with; give a threshold")
        return self.label_weights(others, templates)

    def tokens(self, texts: Sequence[str]) -> int:
        """How many tokens the texts have together, without padding."""
        return int((self.model.tokenizer(list(texts)) != 0).sum())

    def segmentation(self, rgb_HWC: NDArray[np.uint8], labels: Sequence[str]) -> Enlarged:
        """The label map at the image's own size.

        Where labels × pixels exceed MAX_SCORES the image is segmented at a smaller size, and each pixel takes the nearest one's
        label.

        Raises:
            ValueError: the image tower cannot be read densely.
        """
        height, width = rgb_HWC.shape[:2]
        scale = min(1.0, sqrt(MAX_SCORES / (len(labels) * height * width)))
        small_CHW = resample(to_CHW(rgb_HWC), max(1, int(height * scale)), max(1, int(width * scale)))
        small = segment(self.model, small_CHW.permute(1, 2, 0).numpy(), labels)
        rows, columns = (nearest(side, part) for side, part in zip((height, width), small.label_map_HW.shape, strict=True))
        at = rows[:, None], columns
        return Enlarged(small.label_map_HW[at], small, at)


def nearest(size: int, small: int) -> NDArray[np.int64]:
    """For each of `size` cells the one of `small` cells over the same length in which its centre lies."""
    return (2 * np.arange(size) + 1) * small // (2 * size)
