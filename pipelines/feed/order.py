"""The order in which training sees a corpus is arithmetic: row = order(key, epoch, position).

A position is one integer that counts samples since the start of the run; position p is number p mod N of epoch p // N, and each
epoch is a permutation of N samples: the rows, or the pairs of a row and a caption of its own (`Samples`). Nothing is stored and
nothing is shuffled in memory, so resuming is starting at a position, and the number of workers does not appear here at all.

The permutation is a four-round Feistel network over the smallest even number of bits that holds N, with cycle walking (Black and
Rogaway 2002): it evaluates any positions at once, in constant memory, for any N. Its round function is the finaliser of
splitmix64 keyed by a sha256 of (key, epoch, round).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDS = 4
_C1, _C2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele et al. 2014): a bijection of 64-bit words that looks random."""
    x = (x ^ (x >> np.uint64(30))) * _C1
    x = (x ^ (x >> np.uint64(27))) * _C2
    return x ^ (x >> np.uint64(31))


def round_keys(key: str, epoch: int) -> NDArray[np.uint64]:
    """One 64-bit key a round."""
    digest = hashlib.sha256(f"sl-order-1/{key}/{epoch}".encode()).digest()
    return np.frombuffer(digest, dtype="<u8", count=ROUNDS).astype(np.uint64)


def permute(index: NDArray[np.int64], size: int, key: str, epoch: int) -> NDArray[np.int64]:
    """The rows at the given places of epoch `epoch`: a permutation of range(size), evaluated pointwise.

    Args:
        index: int64 [n], each in [0, size).
        key: what identifies corpus, selection and seed.
    """
    assert size > 0
    assert index.size == 0 or (int(index.min()) >= 0 and int(index.max()) < size)
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = round_keys(key, epoch)
    out = index.astype(np.uint64)
    outside = np.ones(out.shape, dtype=bool)
    while outside.any():  # cycle walking: at most four values of the network's domain for one of ours, so this ends soon
        left, right = out[outside] >> half, out[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (mix(right ^ round_key) & mask)
        out[outside] = (left << half) | right
        outside = out >= np.uint64(size)
    return out.astype(np.int64)


def rows_at(first: int, count: int, size: int, key: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and epochs [count] of the positions first, first + 1, ...; they may cross into the next epoch."""
    position = np.arange(first, first + count, dtype=np.int64)
    epoch = position // size
    row = np.empty(count, dtype=np.int64)
    for number in np.unique(epoch):
        here = epoch == number
        row[here] = permute(position[here] % size, size, key, int(number))
    return row, epoch


@dataclass(frozen=True)
class Samples:
    """What an epoch goes through: each row once, or as often as it is said of it.

    A visit is a number under which a row is never seen twice in a run; captions and augmentation depend on it. Where an epoch has a
    row once, it is the epoch's number.

    Attributes:
        rows: int64 [R], corpus rows.
        ends: int64 [R], how many samples the rows up to and with this one have; None: one each.
    """

    rows: NDArray[np.int64]
    ends: NDArray[np.int64] | None = None

    @classmethod
    def often(cls, rows: NDArray[np.int64], times: NDArray[np.int64]) -> Samples:
        """Every row as many times an epoch as is said of it [R]."""
        return cls(rows, np.cumsum(times))

    def __len__(self) -> int:
        """N, of an epoch."""
        return len(self.rows) if self.ends is None else int(self.ends[-1])

    def at(self, first: int, count: int, key: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places in `rows` of the samples at the positions first, first + 1, ... [count], and which visits of those these are."""
        sample, epoch = rows_at(first, count, len(self), key)
        if self.ends is None:
            return sample, epoch
        place = np.searchsorted(self.ends, sample, side="right")
        start = np.where(place > 0, self.ends[place - 1], 0)
        return place, epoch * (self.ends[place] - start) + sample - start
