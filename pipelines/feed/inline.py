"""Each worker reads its own part of every global batch straight from the memory-mapped corpus, ahead of time, in threads.

What a batch holds is decided by `order.rows_at` and by one generator per (seed, epoch, row); threads and workers only decide when
it is ready. So batch k, the positions kB to (k+1)B, is the same at any world size: each rank holds its own slice of it.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.augment import Augment, augment, augment_features
from sightline.models.codec import decode_rgb
from sightline.models.preprocess import Preprocess
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.order import rows_at

Sample = tuple[Tensor, str, bytes]
Loader = Callable[[int, int], Sample]  # (corpus row, epoch) → input, caption, and the uid that was read with them


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch: inputs [b, ...], captions, and what the ledger needs to know of it.

    Attributes:
        uids: uint8 [b, 16], of the rows that were read.
        epochs: int64 [b].
        first: the position of the first sample since the start of the run.
    """

    inputs: Tensor
    captions: list[str]
    uids: NDArray[np.uint8]
    epochs: NDArray[np.int64]
    first: int


class Feed(Protocol):
    """Where training gets its batches; they are the same, whichever feed it is."""

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """This rank's part of the steps first, ..., last - 1, in order. Closing the iterator ends all that works for it."""
        ...


def generator(key: str, epoch: int, row: int) -> np.random.Generator:
    """The only source of randomness for one sample of one epoch."""
    digest = hashlib.sha256(f"sl-sample-1/{key}/{epoch}/{row}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def caption_of(captions: Sequence[str], row: int, epoch: int) -> str:
    """An image's captions take turns: over as many epochs as it has captions, each is used once."""
    return captions[(row + epoch) % len(captions)]


@dataclass(frozen=True)
class PixelLoader:
    """Samples as augmented uint8 pixels [3, S, S]; made of values, so that another process can be told what to load."""

    corpus: Corpus
    options: Augment
    preprocess: Preprocess
    key: str

    def __call__(self, row: int, epoch: int) -> Sample:
        caption = caption_of(self.corpus.captions(row), row, epoch)
        rgb_HWC = decode_rgb(self.corpus.image(row), max_pixels=self.corpus.max_pixels)
        pixels, caption = augment(rgb_HWC, caption, self.options, self.preprocess, generator(self.key, epoch, row))
        return pixels, caption, self.corpus.uid(row)


def pixel_loader(corpus: Corpus, options: Augment, preprocess: Preprocess, key: str) -> PixelLoader:
    """Samples as augmented uint8 pixels [3, S, S]."""
    return PixelLoader(corpus, options, preprocess, key)


def feature_loader(corpus: Corpus, features: dict[int, Tensor], options: Augment, key: str) -> Loader:
    """Samples as the locked trunk's cached features [F]; nothing is decoded."""

    def load(row: int, epoch: int) -> Sample:
        caption = caption_of(corpus.captions(row), row, epoch)
        return *augment_features(features[row], caption, options, generator(key, epoch, row)), corpus.uid(row)

    return load


@dataclass(frozen=True)
class InlineFeed:
    """This rank's batches, in order, from any step on.

    Attributes:
        rows: the corpus rows that the run trains on.
        key: what the order depends on (root, split, seed).
        global_batch: B, over all ranks.
        own: the places in each batch that are this rank's; None: all.
        threads: how many samples are loaded at once.
        ahead: how many batches are prepared in advance.
    """

    load: Loader
    rows: NDArray[np.int64]
    key: str
    global_batch: int
    own: slice | None = None
    threads: int = 2
    ahead: int = 2

    @property
    def size(self) -> int:
        """b, how many samples of each batch are this rank's."""
        return len(range(*(self.own or slice(None)).indices(self.global_batch)))

    def positions(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus rows and epochs of this rank's part of the global batch at `step`."""
        first, end, _ = (self.own or slice(None)).indices(self.global_batch)
        index, epoch = rows_at(step * self.global_batch + first, end - first, len(self.rows), self.key)
        return self.rows[index], epoch

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The steps first, ..., last - 1."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="feed") as pool:
            pending: deque[list[Future[list[Sample]]]] = deque()
            for step in range(first, last + self.ahead):
                if step < last:
                    pending.append(self._submit(pool, step))
                if step >= first + self.ahead:
                    yield self._collate(step - self.ahead, [sample for part in pending.popleft() for sample in part.result()])

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> list[Future[list[Sample]]]:
        rows, epochs = self.positions(step)
        parts = np.array_split(np.arange(len(rows)), self.threads)
        return [pool.submit(self._load, rows[part], epochs[part]) for part in parts]

    def _load(self, rows: NDArray[np.int64], epochs: NDArray[np.int64]) -> list[Sample]:
        return [self.load(int(row), int(epoch)) for row, epoch in zip(rows, epochs, strict=True)]

    def _collate(self, step: int, samples: list[Sample]) -> Batch:
        inputs, captions, uids = zip(*samples, strict=True)
        return self.batch(step, torch.stack(inputs), list(captions), uids)

    def batch(self, step: int, inputs: Tensor, captions: list[str], uids: Sequence[bytes]) -> Batch:
        """Samples that were read for a step, with their place in the run."""
        return Batch(
            inputs,
            captions,
            np.frombuffer(b"".join(uids), np.uint8).reshape(len(uids), -1),
            self.positions(step)[1],
            step * self.global_batch + (self.own or slice(None)).indices(self.global_batch)[0],
        )
