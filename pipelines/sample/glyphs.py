"""Handwritten digits as smooth ink: scikit-learn's 1,797 scans of 8x8 cells, divided among the splits, and their warps.

A scan belongs to one split only (of every digit's scans 130 train, 15 tune, the others test), so no digit of the test
was ever trained on. The division depends on the seed alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from sightline.pipelines.sample.pairs import DIGITS
from sightline.pipelines.sample.spec import SPLITS, Split

Float2D = NDArray[np.float32]

CELLS, MARGIN, FINE = 8, 2, 4  # a scan's side in cells, empty cells around it, samples per cell after smoothing
TRAIN_PER_DIGIT, VAL_PER_DIGIT = 130, 15
# Sharpening takes this share of the neighbourhood's mean away: it keeps the holes of small eights and sixes open.
SHARPEN = 0.8
# Ink begins to cover at FAINT of full pressure and covers wholly at FULL; in between the edge of a stroke is smooth.
FAINT, FULL = 0.3, 0.65


@dataclass(frozen=True)
class Glyphs:
    """Smoothed scans, [scan, row, column], 0 for paper to about 1 for ink, and the scans that each split may use for each digit."""

    ink: NDArray[np.float32]
    scans: Mapping[tuple[Split, int], NDArray[np.int64]]


@functools.lru_cache(maxsize=2)
def load_glyphs(seed: int) -> Glyphs:
    """Every scan, smoothed by cubic interpolation, and the division of the scans among the splits for this seed."""
    digits = load_digits()
    padded = np.pad(digits.images.astype(np.float32) / 16, ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN)))
    around = [np.roll(padded, (y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    sharp = padded + SHARPEN * (padded - np.mean(around, axis=0, dtype=np.float32))
    side = (CELLS + 2 * MARGIN) * FINE
    ink = np.stack([np.asarray(Image.fromarray(s).resize((side, side), Image.Resampling.BICUBIC)) for s in sharp])
    scans: dict[tuple[Split, int], NDArray[np.int64]] = {}
    for digit in range(len(DIGITS)):
        mine = np.random.default_rng([seed, 1_001, digit]).permutation(np.flatnonzero(digits.target == digit))
        parts = np.split(mine, [TRAIN_PER_DIGIT, TRAIN_PER_DIGIT + VAL_PER_DIGIT])
        scans.update({(split, digit): part for split, part in zip(SPLITS, parts, strict=True)})
    return Glyphs(ink, scans)


def warp(ink: Float2D, side_px: float, rng: np.random.Generator) -> Float2D:
    """One scan as if written again: turned, sheared and stretched a little, `side_px` pixels to its eight cells.

    Returns: coverage in 0..1, cropped to the ink.
    """
    turn, shear = math.radians(rng.uniform(-12, 12)), rng.uniform(-0.15, 0.15)
    wide, high = rng.uniform(0.88, 1.18), rng.uniform(0.92, 1.06)
    cos, sin = math.cos(turn), math.sin(turn)
    forward = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) @ np.diag([wide, high])
    back = np.linalg.inv(forward * (side_px / (CELLS * FINE)))
    frame = math.ceil(1.6 * side_px)
    offset = np.array([ink.shape[1] / 2, ink.shape[0] / 2]) - back @ np.array([frame / 2, frame / 2])
    affine = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    turned = Image.fromarray(ink).transform(
        (frame, frame), Image.Transform.AFFINE, cast("tuple[float, ...]", affine), Image.Resampling.BILINEAR
    )
    coverage: Float2D = np.clip((np.asarray(turned, np.float32) - FAINT) / (FULL - FAINT), 0, 1, dtype=np.float32)
    rows, columns = np.flatnonzero(coverage.max(axis=1) > 0.1), np.flatnonzero(coverage.max(axis=0) > 0.1)
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
