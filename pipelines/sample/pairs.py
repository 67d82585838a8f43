"""The sixty (colour, digit) pairs: their class ids, their names, and the twelve that training never sees.

A class id is 1 + 10 * colour + digit, so that 0 stays free for the background. Which pairs are held out depends on the
seed alone: two digits per colour, taken two by two from a shuffled circle of ten, so that each digit is held out once
or twice.
"""

from __future__ import annotations

import colorsys
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.models.zeroshot import BACKGROUND

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Ink:
    """A colour word and the range of hue (degrees), saturation and value (0 to 1) that people call by that word."""

    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]

    def rgb(self, shares: Sequence[float]) -> tuple[float, float, float]:
        """The colour (0 to 1) that lies these three shares of the way through the ranges."""
        ranges = (self.hue, self.saturation, self.value)
        hue, saturation, value = (low + share * (high - low) for share, (low, high) in zip(shares, ranges, strict=True))
        return colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)


COLOURS = {
    "red": Ink((-6, 6), (0.82, 0.95), (0.82, 0.96)),
    "green": Ink((112, 134), (0.75, 0.92), (0.58, 0.76)),
    "blue": Ink((218, 232), (0.78, 0.94), (0.86, 1.0)),
    "yellow": Ink((51, 58), (0.82, 0.96), (0.92, 1.0)),
    "purple": Ink((276, 292), (0.66, 0.84), (0.72, 0.9)),
    "cyan": Ink((180, 188), (0.72, 0.94), (0.84, 0.96)),
}
COLOUR_NAMES = tuple(COLOURS)
CLASS_IDS = tuple(range(1, 1 + len(COLOURS) * len(DIGITS)))


def colour_of(class_id: int) -> str:
    return COLOUR_NAMES[(class_id - 1) // len(DIGITS)]


def digit_of(class_id: int) -> int:
    return (class_id - 1) % len(DIGITS)


def name_of(class_id: int) -> str:
    """The name of a class, such as "red three"; 0 is the background."""
    return f"{colour_of(class_id)} {DIGITS[digit_of(class_id)]}" if class_id else BACKGROUND


@functools.lru_cache(maxsize=8)
def held_out(seed: int) -> tuple[int, ...]:
    """The class ids of the pairs that occur in the test split only, in ascending order."""
    circle = np.random.default_rng([seed, 1_000]).permutation(len(DIGITS))
    return tuple(
        sorted(
            1 + len(DIGITS) * colour + int(circle[(2 * colour + k) % len(DIGITS)])
            for colour in range(len(COLOURS))
            for k in range(2)
        )
    )
