"""Which images a lens looks at: some of a corpus, spread evenly over its rows, or noise where there is no corpus."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sightline.models.codec import decode_rgb
from sightline.models.preprocess import Preprocess
from sightline.pipelines.corpus.reader import Corpus

AT_ONCE = 8


def spread(corpus: Corpus, split: str | None, count: int) -> list[int]:
    """That many rows of a split (of the corpus for None), evenly over it; all of them where it has fewer.

    Raises:
        ValueError: no row is in that split.
    """
    rows = corpus.select(split)
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [int(rows[place]) for place in places]


def pictures(corpus: Corpus, rows: list[int], preprocess: Preprocess) -> Tensor:
    """uint8 [B, 3, S, S] of some rows."""
    return torch.stack([preprocess.pixels(decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels)) for row in rows])


def batches(corpus: Corpus | None, split: str | None, count: int, preprocess: Preprocess, seed: int = 0) -> Iterator[Tensor]:
    """Normalised images [B, 3, S, S], `count` in all: of a corpus, or standard normal noise."""
    if corpus is None:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, count, AT_ONCE):
            yield torch.randn(min(AT_ONCE, count - start), 3, preprocess.size, preprocess.size, generator=generator)
        return
    rows = spread(corpus, split, count)
    for start in range(0, len(rows), AT_ONCE):
        yield preprocess.normalise(pictures(corpus, rows[start : start + AT_ONCE], preprocess))
