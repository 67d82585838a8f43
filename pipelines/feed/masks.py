"""Masks as class numbers: which of a corpus' classes are segmented, which are held out, and what the truth of a pixel is.

Ids of a corpus are what its source said, with gaps; here classes are numbered 0 to K − 1 in the order of their ids, K is the
background, and what has no truth (255, a name such as "unlabelled", an id without a name) is ignored.

A training sample is the pixels and, as a fourth channel, these numbers: one uint8 tensor, which every feed can carry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.augment import Augment, augment_pair
from sightline.models.codec import decode_labels, decode_rgb
from sightline.models.preprocess import Preprocess
from sightline.models.zeroshot import BACKGROUND, IGNORE, UNLABELLED
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import Sample, generator


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a corpus' masks.

    Attributes:
        names: K labels, without the background.
        background: whether the corpus has a class of that name.
        number_256: uint8, the class number of each id: 0 to K − 1, K for the background, 255 for ignored.
    """

    names: tuple[str, ...]
    background: bool
    number_256: NDArray[np.uint8] = field(repr=False)

    @classmethod
    def of(cls, corpus: Corpus, names: Sequence[str] | None = None) -> MaskClasses:
        """The corpus' own, or only those of these names: pixels of the others are ignored, they are never background.

        Raises:
            ValueError: the corpus names no classes, or lacks one of the names.
        """
        ids = {name: number for number, name in sorted(corpus.class_names.items()) if name and number < IGNORE}
        if not ids:
            raise ValueError(f"{corpus.location} names no classes; ingest it with a classes.csv of id,name")
        labels = tuple(name for name in ids if name != BACKGROUND and name.lower() not in UNLABELLED)
        if names is not None:
            check_names(names, labels)
            labels = tuple(names)
        number = np.full(256, IGNORE, np.uint8)
        for place, name in enumerate(labels):
            number[ids[name]] = place
        if BACKGROUND in ids:
            number[ids[BACKGROUND]] = len(labels)
        return cls(labels, BACKGROUND in ids, number)

    def truth(self, corpus: Corpus, row: int) -> NDArray[np.uint8] | None:
        """Class numbers [H, W] of a row's pixels; None where it has no mask."""
        mask = corpus.mask(row)
        return None if mask is None else self.number_256[decode_labels(mask, max_pixels=corpus.max_pixels)]


def check_names(names: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse names that are not among the labels.

    Raises:
        ValueError: one of them is not.
    """
    if strangers := [name for name in names if name not in labels]:
        raise ValueError(f"the corpus' masks have no class {', '.join(strangers)}; they have {', '.join(labels)}")


def of_fold(fold: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The classes that a fold such as 1/4 holds out: that part of the class list, cut into contiguous parts (PASCAL-5i: Shaban et
    al. 2017).

    Raises:
        ValueError: the text is no fold, or there are more folds than classes.
    """
    part, _, parts = fold.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= len(labels)):
        raise ValueError(f"{fold!r} is no fold of {len(labels)} classes; give for example 1/4, the first of four")
    first, end = ((int(part) - 1 + step) * len(labels) // int(parts) for step in (0, 1))
    return tuple(labels[first:end])


@dataclass(frozen=True)
class Masked:
    """Rows with masks as training samples; a function of (key, epoch, row), made of values, as the other loaders are.

    Attributes:
        key: what randomness depends on besides epoch and row (root, split, seed).
    """

    corpus: Corpus
    classes: MaskClasses
    options: Augment
    preprocess: Preprocess
    key: str

    def load(self, row: int, epoch: int) -> Sample:
        """uint8 [4, S, S]: the pixels and the class numbers, without a caption."""
        truth_HW = self._truth(row)
        rgb_HWC = decode_rgb(self.corpus.image(row), max_pixels=self.corpus.max_pixels)
        if truth_HW.shape != rgb_HWC.shape[:2]:
            raise ValueError(
                f"row {row} has an image of {rgb_HWC.shape[:2]} pixels and a mask of {truth_HW.shape}; ingest it again"
            )
        random = generator(self.key, epoch, row)
        pixels, mask = augment_pair(rgb_HWC, truth_HW, self.options, self.preprocess.size, random)
        return torch.cat([pixels, mask[None]]), "", self.corpus.uid(row)

    def load_kept(self, features: dict[int, Tensor], row: int, epoch: int) -> Sample:
        """A frozen tower's maps [C, h, w], kept as seen and (where the run flips) mirrored: [1 or 2, C, h, w] a row."""
        return features[row][int(self._mirrored(row, epoch))], "", self.corpus.uid(row)

    def masks(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> Tensor:
        """The class numbers [n, S, S] of what `load_kept` gives."""
        blank = np.zeros((1, 1, 3), np.uint8)
        found = []
        for row, epoch in zip(rows.tolist(), epochs.tolist(), strict=True):
            random = generator(self.key, epoch, row)
            found.append(augment_pair(blank, self._truth(row), self.options, self.preprocess.size, random)[1])
        return torch.stack(found)

    def _mirrored(self, row: int, epoch: int) -> bool:
        """What `augment_pair` draws, when all that a run may do is to flip."""
        return bool(self.options.flip) and generator(self.key, epoch, row).random() < self.options.flip

    def _truth(self, row: int) -> NDArray[np.uint8]:
        truth_HW = self.classes.truth(self.corpus, row)
        if truth_HW is None:
            raise ValueError(f"row {row} has no mask; train on a split whose rows all have one")
        return truth_HW


def labels_present(corpus: Corpus, rows: NDArray[np.int64]) -> tuple[str, ...]:
    """The labels that have at least one pixel in the rows' masks, in the order of their ids.

    Raises:
        ValueError: a row has no mask, or the corpus names no classes.
    """
    classes = MaskClasses.of(corpus)
    there = np.zeros(256, bool)
    for row in rows.tolist():
        mask = corpus.mask(row)
        if mask is None:
            raise ValueError(
                f"row {row} has no mask, and segmentation needs one each; give split=SPLIT of such rows, or ingest a source with "
                "masks"
            )
        there[np.unique(decode_labels(mask, max_pixels=corpus.max_pixels))] = True
    numbers = set(classes.number_256[there].tolist())
    return tuple(name for number, name in enumerate(classes.names) if number in numbers)
