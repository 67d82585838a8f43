"""Each worker reads its own part of every global batch straight from the memory-mapped corpus, ahead of time, in threads.

What a batch holds is decided by `order.Samples` and by one generator per (seed, visit, row); threads and workers only decide when
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
from sightline.pipelines.feed.order import Samples

Sample = tuple[Tensor, str, bytes]
Loader = Callable[[int, int], Sample]  # (corpus row, visit) → input, caption, and the uid that was read with them


@dataclass(frozen=True)
class Batch:
    """A rank's part of a global batch: inputs [b, ...], captions, and what the ledger needs to know of it.

    Attributes:
        uids: uint8 [b, 16], of the rows that were read.
        visits: int64 [b], of these rows; an epoch's number where it has each row once.
        first: the position of the first sample since the start of the run.
    """

    inputs: Tensor
    captions: list[str]
    uids: NDArray[np.uint8]
    visits: NDArray[np.int64]
    first: int


class Feed(Protocol):
    """Where training gets its batches; they are the same, whichever feed it is."""

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """This rank's part of the steps first, ..., last - 1, in order. Closing the iterator ends all that works for it."""
        ...


def one_ahead(coming: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The same batches, each put together during the step before its own: copying 64 images takes 2 ms."""
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as taker:
        try:
            waiting = taker.submit(next, coming, None)
            while (batch := waiting.result()) is not None:
                waiting = taker.submit(next, coming, None)
                yield batch
        finally:
            taker.submit(coming.close).result()


def generator(key: str, visit: int, row: int) -> np.random.Generator:
    """The only source of randomness for one visit of a row."""
    digest = hashlib.sha256(f"sl-sample-1/{key}/{visit}/{row}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def caption_of(captions: Sequence[str], row: int, visit: int) -> str:
    """An image's captions take turns: over as many visits as it has captions, each is used once."""
    return captions[(row + visit) % len(captions)]


@dataclass(frozen=True)
class PixelLoader:
    """Samples as augmented uint8 pixels [3, S, S]; made of values, so that another process can be told what to load."""

    corpus: Corpus
    options: Augment
    preprocess: Preprocess
    key: str

    def __call__(self, row: int, visit: int) -> Sample:
        caption = caption_of(self.corpus.captions(row), row, visit)
        rgb_HWC = decode_rgb(self.corpus.image(row), max_pixels=self.corpus.max_pixels)
        pixels, caption = augment(rgb_HWC, caption, self.options, self.preprocess, generator(self.key, visit, row))
        return pixels, caption, self.corpus.uid(row)


def feature_loader(corpus: Corpus, features: dict[int, Tensor], options: Augment, key: str) -> Loader:
    """Samples as the locked trunk's cached features [F]; nothing is decoded."""

    def load(row: int, visit: int) -> Sample:
        caption = caption_of(corpus.captions(row), row, visit)
        return *augment_features(features[row], caption, options, generator(key, visit, row)), corpus.uid(row)

    return load


@dataclass(frozen=True)
class InlineFeed:
    """This rank's batches, in order, from any step on.

    Attributes:
        samples: what an epoch goes through.
        key: what the order depends on (root, split, seed).
        global_batch: B, over all ranks.
        own: the places in each batch that are this rank's; None: all.
        threads: how many samples are loaded at once.
        ahead: how many batches are prepared in advance; one of them is put together already.
    """

    load: Loader
    samples: Samples
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
        """Corpus rows of this rank's part of the global batch at `step`, and which visits of theirs these are."""
        first, end, _ = (self.own or slice(None)).indices(self.global_batch)
        place, visits = self.samples.at(step * self.global_batch + first, end - first, self.key)
        return self.samples.rows[place], visits

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The steps first, ..., last - 1."""
        yield from one_ahead(self._in_order(first, last))

    def _in_order(self, first: int, last: int) -> Generator[Batch, None, None]:
        with ThreadPoolExecutor(self.threads, thread_name_prefix="feed") as pool:
            pending: deque[list[Future[list[Sample]]]] = deque()
            for step in range(first, last + self.ahead):
                if step < last:
                    pending.append(self._submit(pool, step))
                if step >= first + self.ahead:
                    yield self._collate(step - self.ahead, [sample for part in pending.popleft() for sample in part.result()])

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> list[Future[list[Sample]]]:
        rows, visits = self.positions(step)
        parts = np.array_split(np.arange(len(rows)), self.threads)
        return [pool.submit(self._load, rows[part], visits[part]) for part in parts]

    def _load(self, rows: NDArray[np.int64], visits: NDArray[np.int64]) -> list[Sample]:
        return [self.load(int(row), int(visit)) for row, visit in zip(rows, visits, strict=True)]

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
