"""Decontamination: whether a row's image is one of other corpora's, which a model is to be judged by.

A row matches if its bytes are the same, or its perceptual hash is within some bits of one there. Of several matches the
one with the fewest bits of difference is named, then the first by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sightline.pipelines.corpus.columns import ColumnInfo, column_info, read_column
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.curate.duplicates import BITS, Hashes, near_pairs


@dataclass(frozen=True)
class Against:
    """The images to keep out; `names` are `ROOT:key`, sorted, with `hashes` beside them.

    Attributes:
        roots: of their corpora, sorted.
        of_bytes: the first name of each sha256.
    """

    roots: list[str]
    distance: int
    names: list[str]
    hashes: Hashes
    of_bytes: dict[bytes, str]

    def matches(self, sha256s: Sequence[bytes], hashes: Hashes) -> list[str | None]:
        """Per row the name of the image that it is too like; None where there is none."""
        ours, of_row = np.unique(hashes, return_inverse=True)
        theirs, first = np.unique(self.hashes, return_index=True)  # equal hashes are one, by the first of their names
        nothing = BITS * len(self.names) + BITS
        best = np.full(len(ours), nothing)  # the bits of difference, then the place among the names, as one number
        for left, right in near_pairs(ours, theirs, self.distance):
            bits = np.bitwise_count(ours[left] ^ theirs[right]).astype(np.int64)
            np.minimum.at(best, left, bits * len(self.names) + first[right])
        near = (None if match == nothing else self.names[match % len(self.names)] for match in best[of_row].tolist())
        return [self.of_bytes.get(digest, match) for digest, match in zip(sha256s, near, strict=True)]


def open_against(locations: Sequence[str], distance: int, ours: ColumnInfo) -> Against:
    """The images of some corpora, with perceptual hashes made like ours.

    Raises:
        FileNotFoundError: there is no such corpus.
        ValueError: it has no such hashes.
    """
    images: list[tuple[str, bytes, int]] = []
    roots = set()
    for location in locations:
        corpus = Corpus.open(location)
        roots.add(corpus.root)
        try:
            theirs = column_info(corpus, ours.name)
        except ValueError:
            theirs = None
        if theirs is None or (theirs.kind, theirs.rule) != (ours.kind, ours.rule):
            remedy = f"run `sightline corpus score {location} {ours.name} --phash`"
            raise ValueError(f"{location} has no perceptual hashes, or others than this corpus; {remedy}")
        table = corpus.sidecar(["key", "sha256"])
        names = (f"{corpus.root[:12]}:{key}" for key in table["key"].to_pylist())
        images += zip(names, table["sha256"].to_pylist(), read_column(corpus, ours.name).to_pylist(), strict=True)
    images.sort()
    return Against(
        roots=sorted(roots),
        distance=distance,
        names=[name for name, _, _ in images],
        hashes=np.array([value for _, _, value in images], dtype=np.uint64),
        of_bytes={digest: name for name, digest, _ in reversed(images)},
    )
