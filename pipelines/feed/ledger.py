"""The ledger: what training has read, as a chain of short digests that anyone can recompute from the plan.

Every sample that a worker reads gives two 64-bit words, a mix of its position in the run, the number of its row's visit (the
epoch's, if that has each row once) and the `uid` that stands in the shard beside the image. The words of a global batch are added
up, so that it does not matter which rank read what; each depends on its position, so that two rows which trade places give
another sum. A step's link is sha256 over the link before it and that sum, cut to eight bytes: equal links mean that everything up
to there was read in the same order. `replay` computes the links from (root, seed, epoch, position) alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sightline.pipelines.feed.order import Samples, mix

WORDS = 2
BLOCK = 2**20  # positions that are replayed at a time
_STRIDE = np.uint64(0x9E3779B97F4A7C15)


def words_of(uids: NDArray[np.uint8], visits: NDArray[np.int64], first: int) -> NDArray[np.int64]:
    """The words [n, 2] of the samples at positions first, first + 1, ...; integers wrap around.

    Args:
        uids: uint8 [n, 16].
        visits: int64 [n].
    """
    halves = np.ascontiguousarray(uids).view("<u8").astype(np.uint64)
    position = np.arange(first, first + len(halves), dtype=np.uint64)
    place = mix(position * _STRIDE ^ mix(visits.astype(np.uint64)))
    words = [mix(mix(halves[:, lane] ^ place) + halves[:, 1 - lane] + np.uint64(lane)) for lane in range(WORDS)]
    return np.stack(words, axis=1).view(np.int64)


def origin(key: str) -> str:
    """What stands before the first step: the order's key alone."""
    return hashlib.sha256(f"sl-ledger-1/{key}".encode()).hexdigest()[:16]


def link(before: str, total: NDArray[np.int64]) -> str:
    """The link of a step, 16 hexadecimal digits, from the one before it and the sum [2] of the global batch's words."""
    return hashlib.sha256(bytes.fromhex(before) + np.ascontiguousarray(total, dtype="<i8").tobytes()).hexdigest()[:16]


def replay(samples: Samples, uids: NDArray[np.uint8], key: str, global_batch: int, steps: int) -> Iterator[str]:
    """The links of the steps 1, 2, ... of a run over samples of rows with these uids [R, 16], in the order that the key gives."""
    at_once = max(1, BLOCK // global_batch)
    before = origin(key)
    for step in range(0, steps, at_once):
        count = min(at_once, steps - step)
        first = step * global_batch
        place, visits = samples.at(first, count * global_batch, key)
        words = words_of(uids[place], visits, first).reshape(count, global_batch, WORDS)
        for total in words.sum(axis=1, dtype=np.int64):
            before = link(before, total)
            yield before
