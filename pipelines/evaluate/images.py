"""Corpus rows through a model, by batches, with the same preprocessing as in serving."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from sightline.models.codec import decode_rgb
from sightline.models.preprocess import Preprocess
from sightline.pipelines.corpus.reader import Corpus

BATCH = 64


def rows_through(
    model: Callable[[Tensor], Tensor],
    preprocess: Preprocess,
    corpus: Corpus,
    rows: Iterable[int],
    progress: Callable[[str, int, int], None],
) -> Tensor:
    """What a model makes of the pixels [n, 3, S, S] of each row, on the CPU, [N, ...]."""
    numbers, parts = [int(row) for row in rows], []
    for first in range(0, len(numbers), BATCH):
        images = [decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels) for row in numbers[first : first + BATCH]]
        parts.append(model(torch.stack([preprocess.pixels(image) for image in images])).cpu())
        progress("images", min(first + BATCH, len(numbers)), len(numbers))
    return torch.cat(parts)
