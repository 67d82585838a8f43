"""What a source is: it lists items, and reads the bytes that they refer to.

Everything that a person can get wrong about a source as a whole (no table, a class without a name) is a `ValueError`
while listing; what is wrong with one item becomes its verdict, so that it ends as one row of the errors table. Nothing
that was seen is left out of the list.

To add a kind of source: one more file here with a class like this, and one more line in `detect.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from sightline.pipelines.corpus.schema import FILTER
from sightline.pipelines.ingest.sources.place import Place

# An item as a plan freezes it. `image` and `mask` are references that the source's `read` understands.
ITEM_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.string(), nullable=False),
        pa.field("nbytes", pa.int64()),
        pa.field("captions", pa.list_(pa.string()), nullable=False),
        pa.field("labels", pa.list_(pa.int32()), nullable=False),
        pa.field("mask", pa.string()),
        pa.field("mask_nbytes", pa.int64()),
        pa.field("extra", pa.string(), nullable=False),
        pa.field("verdict", pa.struct([("stage", pa.string()), ("code", pa.string()), ("message", pa.string())])),
        pa.field("block", pa.string()),
    ]
)


@dataclass(frozen=True)
class Verdict:
    """Why an item cannot become a row, known from the listing alone; `stage` and `code` as in the errors table."""

    stage: str
    code: str
    message: str


@dataclass(frozen=True)
class Item:
    """One input.

    Attributes:
        key: unique in its source; part of the row.
        image: where its bytes are, as the source's `read` takes it.
        nbytes: how many they were when the plan was made. A file that changed since makes another plan.
        captions, labels, extra: as in a row.
        mask, mask_nbytes: likewise for the label map; None where there is none.
        verdict: None for an item that can be read.
        block: the container that holds the bytes (a tar, a row group), where opening one is dear; the items of a block lie
            together in the plan, so that a shard opens few. Opaque, and names its container's state where that is known, so
            that a changed container makes another plan. None: the item is a file of its own.
    """

    key: str
    image: str
    nbytes: int | None = None
    captions: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    mask: str | None = None
    mask_nbytes: int | None = None
    extra: str = "{}"
    verdict: Verdict | None = None
    block: str | None = None

    def to_row(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Item:
        verdict = None if row["verdict"] is None else Verdict(**row["verdict"])
        return cls(**{**row, "captions": tuple(row["captions"]), "labels": tuple(row["labels"]), "verdict": verdict})


def wrong(code: str, message: str) -> Verdict:
    """The verdict on what the listing alone shows to be an error."""
    return Verdict("list", code, message)


def distinct(items: Iterable[tuple[str, Item]]) -> Iterator[Item]:
    """Items, each given with its place.

    Raises:
        ValueError: a key occurs twice; the message names both places.
    """
    places: dict[str, str] = {}
    for place, item in items:
        if item.key in places:
            raise ValueError(f"the key {item.key!r} occurs twice, in {places[item.key]} and in {place}; give each image its own")
        places[item.key] = place
        yield item


def filtered(code: str, message: str) -> Verdict:
    """The verdict on what is left out on purpose."""
    return Verdict(FILTER, code, message)


class Source(Protocol):
    """A kind of source, opened at a place. Workers get it pickled, so it holds where to read, not what was read."""

    kind: ClassVar[str]
    layout: ClassVar[str]

    @classmethod
    def found(cls, path: Place) -> bool:
        """Whether the place looks like this kind."""
        ...

    @classmethod
    def open(cls, path: Place) -> Source:
        """The source at a place.

        Raises:
            ValueError: the place is not of this kind; the message says what is missing.
        """
        ...

    def config(self) -> dict[str, Any]:
        """What decides the rows' bytes besides the items, to be hashed into the plan."""
        ...

    def classes(self) -> list[tuple[int, str]]:
        """Class ids and names; empty where the source has none."""
        ...

    def items(self) -> Iterator[Item]:
        """Every item, in any order."""
        ...

    def read(self, reference: str) -> bytes:
        """The bytes behind an item's reference.

        Raises:
            OSError: they cannot be read.
        """
        ...
