"""What a source is: it lists items, and reads the bytes that they refer to.

Everything that a person can get wrong about a source as a whole (no table, a class without a name) is a `ValueError`
while listing; what is wrong with one item becomes its verdict, so that it ends as one row of the errors table. Nothing
that was seen is left out of the list. Text that has no UTF-8 (a lone surrogate) may stand in an item; `sound` makes that an
error of this item, for every kind of source.

To add a kind of source: one more file here with a class like this, and one more line in `detect.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
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


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8; one with a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A text as UTF-8, with what is none spelled out: bytes of a file's name as `\\xe9`, other surrogates as `\\ud800`."""
    if is_utf8(text):
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()


def sound(item: Item) -> Item:
    """An item that a plan can hold: one with text that is no UTF-8 becomes an error, and the rest of its text goes."""
    named = {"key": item.key, "image": item.image, "mask": item.mask or "", "block": item.block or "", "extra": item.extra}
    texts = [*named.items(), *(("captions", text) for text in item.captions)]
    verdict = item.verdict and replace(item.verdict, message=printable(item.verdict.message))
    if odd := [name for name, text in texts if not is_utf8(text)]:
        fault = wrong("text_not_utf8", f"its {odd[0]} has a lone surrogate, or bytes that are no UTF-8; correct the text")
        left_out = verdict is not None and verdict.stage == FILTER
        return Item(printable(item.key), printable(item.image), item.nbytes, verdict=verdict if left_out else fault)
    return item if verdict == item.verdict else replace(item, verdict=verdict)


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


class ItemError(ValueError):
    """What is wrong with one item, raised where it is found, caught where the item is made.

    Attributes:
        verdict: for the errors table.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.verdict = wrong(code, message)


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
        """What decides the rows' bytes besides the items, to be hashed into the plan. Where a source chooses what its keys are made
        of, `key` names the choice: with another choice nothing may join a corpus, since its rows would be in twice.
        """
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
