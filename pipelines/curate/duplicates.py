"""Which rows are the same picture: by bytes, by content, or by perceptual hashes that differ in few bits.

Invariant: the answer depends on the set of rows and not on their order: of each group the row with the smallest (uid, key) stays.
Near duplicates are found without comparing all pairs: d bits touch at most d of the d + e bands that 64 bits are cut into, so
two hashes within distance d agree in e whole bands at least (pigeonhole), and only hashes that share some e bands are compared.
That is exact for any e and any bands. A sample says which e is cheapest, and where to cut so that unlike hashes agree in each
band equally seldom; a bucket that is large all the same is cut anew by what tells its own hashes apart. Equal hashes are
compared as one. Groups are connected components (a chain of neighbours is one), and what is in one group already is not compared
again, so a bucket full of look-alikes costs little. Memory grows with the rows, never with the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, pairwise
from math import comb
from operator import or_

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BITS = 64
MAX_DISTANCE = 15  # with more bands than 16 of 4 bits, buckets are so large that this is comparing all pairs
BLOCK = 512  # hashes compared at a time with as many others: their differences stay in the processor's cache
FEW = 1 << 24  # so many pairs are all compared in less time than it takes to think
SAMPLE = 1_024
MAX_TABLES = 100
SORTING = 16  # what sorting a hash into a table costs, in comparisons

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
    """Groups of rows whose hashes are linked by steps of at most `distance` bits.

    Raises:
        ValueError: the distance is out of range.
    """
    distinct, row_of = np.unique(hashes, return_inverse=True)
    groups = Groups(len(distinct))
    for left, right in near_pairs(distinct, distinct, distance, groups):
        groups.unite(left, right)
    groups.settle()
    return np.asarray(groups.of[row_of.reshape(-1)], dtype=np.int64)


class Groups:
    """Connected components that grow: `of` has the group of each, as far as the links are settled."""

    def __init__(self, count: int) -> None:
        self.of: Integers = np.arange(count)
        self._links: list[tuple[Integers, Integers]] = []
        self._room = self._all_room = max(count, BLOCK * BLOCK)

    def unite(self, left: Integers, right: Integers) -> None:
        new = self.of[left] != self.of[right]
        self._links.append((left[new], right[new]))
        self._room -= int(new.sum()) + 1
        if self._room < 0:
            self.settle()

    def settle(self) -> None:
        if self._links:
            left, right = (np.concatenate(ends) for ends in zip(*self._links, strict=True))
            while (self.of[left] != self.of[right]).any():
                # Each group goes over to the least that it is linked with, and then to where that one goes.
                first, second = self.of[left], self.of[right]
                into = np.arange(len(self.of))
                np.minimum.at(into, np.maximum(first, second), np.minimum(first, second))
                while (into != into[into]).any():
                    into = into[into]
                self.of = into[self.of]
        self._links, self._room = [], self._all_room

    def united(self, left: Integers, right: Integers) -> bool:
        """Whether all of these are one group."""
        of, group = self.of, self.of[left[0]]
        return bool((of[left] == group).all() and (of[right] == group).all())


@dataclass(frozen=True)
class Some:
    """Some of the hashes, and their indices among all."""

    hashes: Hashes
    ids: Integers

    def __getitem__(self, which: slice | Integers) -> Some:
        return Some(self.hashes[which], self.ids[which])

    def in_buckets(self, table: np.uint64, groups: Groups | None) -> Some:
        """By what they have in the bits of a table, and those of one group side by side."""
        order = np.arange(len(self.ids)) if groups is None else np.argsort(groups.of[self.ids], kind="stable")
        return self[order[np.argsort(self.hashes[order] & table, kind="stable")]]


def near_pairs(a: Hashes, b: Hashes, distance: int, groups: Groups | None = None) -> Iterator[tuple[Integers, Integers]]:
    """Indices (into a, into b) of all pairs within the distance; a pair may come more than once.

    Args:
        groups: where a and b are the same: a pair comes in one order only, and one within a group need not come.

    Raises:
        ValueError: the distance is out of range.
    """
    check_distance(distance)
    yield from pairs_among(Some(a, np.arange(len(a))), Some(b, np.arange(len(b))), distance, groups)


def pairs_among(a: Some, b: Some, distance: int, groups: Groups | None) -> Iterator[tuple[Integers, Integers]]:
    for table in cheapest_tables(a.hashes, b.hashes, distance):
        yield from pairs_of_table(a.in_buckets(table, groups), b.in_buckets(table, groups), table, distance, groups)


def pairs_of_table(a: Some, b: Some, table: np.uint64, distance: int, groups: Groups | None) -> Iterator[tuple[Integers, Integers]]:
    """Those of the near pairs that agree in the bits of a table; both sides lie in its buckets."""
    keys, first, count = np.unique(a.hashes & table, return_index=True, return_counts=True)
    low, high = (np.asarray(np.searchsorted(b.hashes & table, keys, side), np.int64) for side in ("left", "right"))
    pairs = count * (high - low)
    large = pairs > BLOCK * BLOCK
    for i in np.flatnonzero(large).tolist():
        some_a, some_b = a[first[i] : first[i] + count[i]], b[low[i] : high[i]]
        split = pairs[i] > FEW and pairs[i] <= len(a.ids) * len(b.ids) // 2  # or it might be cut for ever
        yield from (pairs_among if split else pairs_in_blocks)(some_a, some_b, distance, groups)
    # All small buckets together: row i of `rows` is compared with b[begin[i]:], as many as `width` says.
    rows = np.flatnonzero(np.repeat(~large, count))
    begin, end = np.repeat(low[~large], count[~large]), np.repeat(high[~large], count[~large])
    if groups is not None:
        begin = rows + 1  # the two are the same, in the same order
    width = end - begin
    ends = np.cumsum(width)
    shift = begin - (ends - width)
    for start in range(0, int(ends[-1]) if len(ends) else 0, BLOCK * BLOCK):
        stop = min(start + BLOCK * BLOCK, int(ends[-1]))
        some = np.arange(np.searchsorted(ends, start, "right"), np.searchsorted(ends, stop, "left") + 1)
        of = np.repeat(some, np.minimum(ends[some], stop) - np.maximum(ends[some] - width[some], start))
        left, right = rows[of], shift[of] + np.arange(start, stop)
        near = np.bitwise_count(a.hashes[left] ^ b.hashes[right]) <= distance
        yield a.ids[left[near]], b.ids[right[near]]


def pairs_in_blocks(a: Some, b: Some, distance: int, groups: Groups | None) -> Iterator[tuple[Integers, Integers]]:
    """The near pairs by comparing all."""
    for i in range(0, len(a.ids), BLOCK):
        some_a = a[i : i + BLOCK]
        for j in range(0 if groups is None else i, len(b.ids), BLOCK):
            some_b = b[j : j + BLOCK]
            if groups is None or not groups.united(some_a.ids, some_b.ids):
                left, right = np.nonzero(np.bitwise_count(some_a.hashes[:, None] ^ some_b.hashes) <= distance)
                yield some_a.ids[left], some_b.ids[right]


def cheapest_tables(a: Hashes, b: Hashes, distance: int) -> list[np.uint64]:
    """The tables for that number of shared bands which a sample says is the cheapest; no bits where all pairs are few."""
    all_pairs = len(a) * len(b)
    if all_pairs <= FEW:
        return tables(distance, 0, np.ones(BITS))
    differing = (a[:: -(-len(a) // SAMPLE), None] ^ b[:: -(-len(b) // SAMPLE)]).reshape(-1)
    far = differing[np.bitwise_count(differing) > distance]  # near ones are compared once or soon known, whatever the tables
    weights = tell_apart(far)
    costs: dict[float, list[np.uint64]] = {}
    for agreeing in range(BITS):
        if comb(distance + agreeing, agreeing) > MAX_TABLES:
            break
        found = tables(distance, agreeing, weights)
        shared = sum(int(((far & table) == 0).sum()) for table in found) / len(differing)
        costs.setdefault(shared * all_pairs + SORTING * len(found) * (len(a) + len(b)), found)
        if distance == 0 and agreeing:
            break  # one band of all bits: more are no other
    return costs[min(costs)]


def tell_apart(differing: Hashes) -> NDArray[np.float64]:
    """How well each bit tells hashes apart: a band of weight w is shared by 2^-w of the pairs if bits go their own ways."""
    if not len(differing):
        return np.ones(BITS)
    some = np.ascontiguousarray(differing[:: -(-len(differing) // 65_536)], dtype="<u8")
    share = np.unpackbits(some.view(np.uint8).reshape(-1, BITS // 8), axis=1, bitorder="little").mean(axis=0)
    return np.asarray(-np.log2(1 - np.minimum(share, 0.99)) + 1e-6)


def tables(distance: int, agreeing: int, weights: NDArray[np.float64]) -> list[np.uint64]:
    """The bits of every choice of `agreeing` bands among `distance + agreeing`."""
    cut = bands(distance + agreeing, weights) if distance + agreeing else []
    return [reduce(or_, some, np.uint64(0)) for some in combinations(cut, agreeing)]


def bands(count: int, weights: Sequence[float] | NDArray[np.float64]) -> list[np.uint64]:
    """Masks of `count` runs of bits that together are all 64, cut so that each has its share of the bits' weights."""
    reached = np.cumsum(weights) / np.sum(weights)
    inner = np.searchsorted(reached, np.arange(1, count) / count - 1e-9) + 1
    edges = [0, *np.minimum(inner, BITS).tolist(), BITS]
    return [np.uint64((1 << high) - (1 << low)) for low, high in pairwise(edges)]


def check_distance(distance: int) -> None:
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(
            f"distance={distance}; give 0 to {MAX_DISTANCE} of the {BITS} bits (6 finds resized and re-compressed copies)"
        )
