"""Rows with labels as training samples: pixels for the loader, and the weights of the classes for the loss.

Both are functions of (key, epoch, row). A row may be mixed with another one, which the same loader decodes and augments by its own
generator, so that it is the same image at any world size; only the row itself is in the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.augment import Augment, Mix, augment, draw_mix, mixed
from sightline.models.codec import decode_rgb
from sightline.models.preprocess import Preprocess
from sightline.models.zeroshot import BACKGROUND
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import Sample, generator


def class_list(corpus: Corpus) -> tuple[str, ...]:
    """The corpus' classes in the order of their ids, without the background."""
    return tuple(name for _, name in sorted(corpus.class_names.items()) if name and name != BACKGROUND)


def places(corpus: Corpus, rows: NDArray[np.int64], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """For each of the rows, the place of its label in the class list.

    Raises:
        ValueError: a row has no label, several, or one that is not in the list.
    """
    if len(set(classes)) != len(classes):
        raise ValueError(f"a class stands twice in model.classes, {', '.join(classes)}; give each once")
    labels = corpus.sidecar(["labels"])["labels"].take(pa.array(rows)).combine_chunks()
    counts = pc.fill_null(pc.list_value_length(labels), 0).to_numpy(zero_copy_only=False).copy()
    for i in np.flatnonzero(counts > 1).tolist():  # the same one twice is one
        counts[i] = len(set(labels[i].as_py()))
    for what, wrong in (("have no label", counts == 0), ("have several labels", counts > 1)):
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum()):,} of {len(rows):,} rows {what}, as row {int(rows[wrong][0])}, and a classifier needs one "
                "each; give split=SPLIT of such rows, or ingest them with a label each (a folder per class, or a column `label`)"
            )
    found, names = pc.list_element(labels, 0).to_numpy(zero_copy_only=False), corpus.class_names
    place = {name: i for i, name in enumerate(classes)}
    present = np.unique(found).tolist()
    strangers = sorted({names.get(label, str(label)) for label in present} - place.keys())
    if strangers:
        raise ValueError(
            f"rows have labels outside the class list: {', '.join(strangers[:5])}; the list is {', '.join(classes) or 'empty'}; "
            "add them to model.classes, or leave it out to take the corpus' own"
        )
    return np.array([place[names[label]] for label in present], dtype=np.int64)[np.searchsorted(present, found)]


@dataclass(frozen=True)
class Labelled:
    """The labelled rows of a run.

    Attributes:
        rows: those trained on, in ascending order.
        places: of their labels, among so many `classes`.
        key: what randomness depends on besides epoch and row (root, split, seed).
    """

    corpus: Corpus
    rows: NDArray[np.int64]
    places: NDArray[np.int64]
    classes: int
    options: Augment
    preprocess: Preprocess
    key: str

    def load(self, row: int, epoch: int) -> Sample:
        """The row's pixels, mixed if so drawn; without a caption."""
        pixels, mix = self._pixels(row, epoch), self.mix(row, epoch)
        if mix is not None:
            pixels = mixed(pixels, self._pixels(int(self.rows[mix.partner]), epoch), mix)
        return pixels, "", self.corpus.uid(row)

    def weights(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> Tensor:
        """The weights of the classes [n, L] in each row: the row's own label, and its partner's."""
        found_nL = torch.zeros(len(rows), self.classes)
        for out_L, row, epoch in zip(found_nL, rows.tolist(), epochs.tolist(), strict=True):
            mix = self.mix(row, epoch)
            own = self.places[np.searchsorted(self.rows, row)]
            out_L[own] += 1.0 if mix is None else mix.kept
            if mix is not None:
                out_L[self.places[mix.partner]] += 1 - mix.kept
        return found_nL

    def mix(self, row: int, epoch: int) -> Mix | None:
        """What the row is mixed with in that epoch."""
        random = generator(f"{self.key}/mix", epoch, row)
        return draw_mix(self.options, len(self.rows), self.preprocess.size, random)

    def _pixels(self, row: int, epoch: int) -> Tensor:
        image = decode_rgb(self.corpus.image(row), max_pixels=self.corpus.max_pixels)
        return augment(image, "", self.options, self.preprocess, generator(self.key, epoch, row))[0]
