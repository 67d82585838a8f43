"""Which rows are the same picture: by bytes, by content, or by perceptual hashes that differ in few bits.

Invariant: the answer depends on the set of rows and not on their order: of each group the row with the smallest (uid, key) stays.
Near duplicates are found without comparing all pairs: 64 bits in d + 1 bands, so two hashes within distance d agree in at least one
(pigeonhole), and only hashes that share a band are compared. Groups are connected components: a chain of neighbours is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BITS = 64
MAX_DISTANCE = 15  # with more bands than 16 of 4 bits, buckets are so large that this is comparing all pairs
BLOCK = 4_096  # hashes compared at a time with all others of a bucket

Hashes = NDArray[np.uint64]
Integers = NDArray[np.int64]


def precedence(table: pa.Table) -> Integers:
    """Each row's place in the order of (uid, key): 0 is first, whatever the order of the rows."""
    plain = pa.table({"uid": table["uid"].cast(pa.binary()), "key": table["key"]})
    order = pc.sort_indices(plain, [("uid", "ascending"), ("key", "ascending")]).to_numpy()
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


def codes(column: pa.ChunkedArray) -> Integers:
    """Equal values to equal numbers."""
    plain = column.cast(pa.binary()).combine_chunks().dictionary_encode()
    return np.asarray(plain.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def first_of_each(groups: Integers, places: Integers) -> NDArray[np.bool_]:
    """Of each group the row that comes first."""
    order = np.lexsort((places, groups))
    kept = np.zeros(len(groups), np.bool_)
    if len(groups):
        kept[order[np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))]] = True
    return kept


def near_groups(hashes: Hashes, distance: int) -> Integers:
    """Groups of rows whose hashes are linked by steps of at most `distance` bits."""
    distinct, row_of = np.unique(hashes, return_inverse=True)
    parent = np.arange(len(distinct))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    for left, right in near_pairs(distinct, distinct, distance):
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            parent[find(a)] = find(b)
    roots = np.array([find(i) for i in range(len(distinct))], dtype=np.int64)
    return np.asarray(roots[row_of.reshape(-1)], dtype=np.int64)


def near_pairs(a: Hashes, b: Hashes, distance: int) -> Iterator[tuple[Integers, Integers]]:
    """Indices (into a, into b) of all pairs within the distance; a pair may come more than once.

    Raises:
        ValueError: the distance is out of range.
    """
    check_distance(distance)
    for band in bands(distance):
        key_a, key_b = a & band, b & band
        order = np.argsort(key_b, kind="stable")
        shared, first_a = np.intersect1d(key_a, key_b), np.argsort(key_a, kind="stable")
        starts_a, ends_a = (np.searchsorted(key_a[first_a], shared, side) for side in ("left", "right"))
        starts_b, ends_b = (np.searchsorted(key_b[order], shared, side) for side in ("left", "right"))
        for start_a, end_a, start_b, end_b in zip(starts_a, ends_a, starts_b, ends_b, strict=True):
            in_b = order[start_b:end_b]
            for start in range(start_a, end_a, BLOCK):
                in_a = first_a[start : min(start + BLOCK, end_a)]
                i, j = np.nonzero(np.bitwise_count(a[in_a][:, None] ^ b[in_b]) <= distance)
                yield in_a[i], in_b[j]


def bands(distance: int) -> list[np.uint64]:
    """Masks of distance + 1 runs of bits that together are all 64."""
    edges = np.linspace(0, BITS, distance + 2).round().astype(int).tolist()
    return [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]


def check_distance(distance: int) -> None:
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(
            f"distance={distance}; give 0 to {MAX_DISTANCE} of the {BITS} bits (6 finds resized and re-compressed copies)"
        )
