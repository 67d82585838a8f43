"""What determines a sample: five numbers. The same five, with the same packages, give the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SMALLEST, LARGEST = 32, 512
MOST_SCENES = 1_000_000  # file names have six figures


@dataclass(frozen=True)
class SampleSpec:
    """Seed, scenes per split, and the side of the square images in pixels.

    Raises:
        ValueError: a number is out of its range.
    """

    seed: int = 0
    train: int = 12_000
    val: int = 500
    test: int = 1_600
    size: int = 48

    def __post_init__(self) -> None:
        for name in ("seed", *SPLITS):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")
        if not 1 <= self.scenes <= MOST_SCENES:
            raise ValueError(f"train + val + test is {self.scenes:,} scenes: ask for 1 to {MOST_SCENES:,} together")
        if not SMALLEST <= self.size <= LARGEST:
            raise ValueError(f"size is {self.size}: give {SMALLEST} to {LARGEST} pixels")

    @property
    def scenes(self) -> int:
        return self.train + self.val + self.test

    def count(self, split: Split) -> int:
        return {"train": self.train, "val": self.val, "test": self.test}[split]
