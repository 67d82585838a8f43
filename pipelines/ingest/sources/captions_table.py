"""A folder with a captions table: CSV, JSON lines or Parquet with a column `image` and a column `caption` or
`captions`.

Rows of the same image are one item, with its captions in the table's order (an empty caption is none). Its key is the
image's name, or the column `key`. `label` or
`labels` are names or ids of `classes.csv` (id,name); without that file the distinct names, sorted, are the classes.
`mask` is a file too. Every other column goes into `extra` under its name: the value where the image's rows agree, the
list of values where they do not. In a CSV file, `captions` and `labels` are a JSON list of texts (labels: or whole
numbers), or one text as it stands. Files are looked
up in the folder, then in its `images/` (masks: `masks/`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from sightline.pipelines.ingest.sources import tables
from sightline.pipelines.ingest.sources.extras import joined
from sightline.pipelines.ingest.sources.files import CLASSES, class_id, escapes, label_ids, read_class_list
from sightline.pipelines.ingest.sources.item import Item, Verdict, distinct
from sightline.pipelines.ingest.sources.place import Place, entries, is_file, read_bytes, sizes

TEXTS, LABELS = ("captions", "caption"), ("labels", "label")
KNOWN = ("image", "key", "mask", *TEXTS, *LABELS)


@dataclass(frozen=True)
class Line:
    """A row of the table, checked."""

    image: str
    key: str
    captions: tuple[str, ...]
    labels: tuple[str | int, ...]
    mask: str | None
    extra: dict[str, Any]


@dataclass(frozen=True)
class CaptionsTable:
    """A captions table, and the folder that its files lie in."""

    root: Place
    table: Place
    kind: ClassVar[str] = "captions_table"
    layout: ClassVar[str] = "a captions table (captions.csv, .jsonl or .parquet with columns `image` and `caption` or `captions`)"

    @classmethod
    def found(cls, path: Place) -> bool:
        """There is a table at all: whoever has one wants it read, or to hear what it lacks."""
        return bool(candidates(path))

    @classmethod
    def claims(cls, path: Place) -> bool:
        """There is a table, it has the columns, and its images are names."""
        return any(fits(tables.columns(table)) and tables.is_text(table, "image") for table in candidates(path))

    @classmethod
    def open(cls, path: Place) -> CaptionsTable:
        found = candidates(path)
        if not found:
            raise ValueError(f"{path} has no captions table: expected {cls.layout}")
        fitting = [table for table in found if fits(tables.columns(table))]
        if not fitting:
            for table in found:
                next(tables.rows(table), None)  # what is damaged says so
            have = "; ".join(f"{table.name} has {', '.join(tables.columns(table)) or 'none'}" for table in found)
            alone = f" ({found[0].name} was taken for it because it is the only table there: take it away, or give --kind)"
            why = alone if len(found) == 1 and found[0] != path and found[0].stem != "captions" else ""
            raise ValueError(f"a captions table needs the columns `image` and `caption` or `captions`; {have}{why}")
        preferred = [table for table in fitting if table.stem == "captions"] or fitting
        if len(preferred) > 1:
            names = ", ".join(table.name for table in preferred)
            raise ValueError(f"{path} has several captions tables ({names}); name one of them instead of the folder")
        return cls(preferred[0].parent, preferred[0])

    def config(self) -> dict[str, Any]:
        return {}

    def classes(self) -> list[tuple[int, str]]:
        return self._class_list

    def items(self) -> Iterator[Item]:
        groups: dict[str, list[Line]] = {}
        if not self._lines:
            raise ValueError(f"{self.table.name} has no rows, only its columns; write a row for each caption")
        for line in self._lines:
            groups.setdefault(line.image, []).append(line)
        ids = label_ids(self._class_list)
        yield from distinct((f"{self.table.name} (image {image!r})", self._item(lines, ids)) for image, lines in groups.items())

    def read(self, reference: str) -> bytes:
        return read_bytes(self.root, reference)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "table": self.table}  # what was listed stays here: workers only read files

    @cached_property
    def _lines(self) -> list[Line]:
        csv = self.table.name.lower().endswith(".csv")
        return [parse(unpacked(row) if csv else row, place) for place, row in tables.rows(self.table)]

    @cached_property
    def _size(self) -> Callable[[str], int | None]:
        return sizes(self.root)

    @cached_property
    def _class_list(self) -> list[tuple[int, str]]:
        if named := read_class_list(self.root):
            return named
        return list(enumerate(sorted({str(label) for line in self._lines for label in line.labels})))

    def _item(self, lines: list[Line], ids: dict[str | int, int]) -> Item:
        image = lines[0].image
        masks = {line.mask for line in lines}
        if len(masks) > 1:
            raise ValueError(f"{self.table.name} gives the image {image!r} several masks; give it one")
        if len({line.key for line in lines}) > 1:
            raise ValueError(f"{self.table.name} gives the image {image!r} several keys; give it one")
        reference, nbytes, verdict = self._find(image, "images")
        mask, mask_nbytes = lines[0].mask, None
        if mask is not None:
            mask, mask_nbytes, wrong = self._find(mask, "masks")
            verdict = verdict or (wrong and Verdict("mask", f"mask_{wrong.code}", f"the mask {mask}: {wrong.message}"))
        return Item(
            key=lines[0].key,
            image=reference,
            nbytes=nbytes,
            captions=tuple(caption for line in lines for caption in line.captions),
            labels=tuple(dict.fromkeys(class_id(str(label), ids, self.table.name) for line in lines for label in line.labels)),
            mask=mask,
            mask_nbytes=mask_nbytes,
            extra=joined([line.extra for line in lines], f"{self.table.name}: the image {image!r}"),
            verdict=verdict,
        )

    def _find(self, name: str, folder: str) -> tuple[str, int | None, Verdict | None]:
        """The reference to a file that the table names, its size in bytes, and what is wrong with it."""
        if escapes(name):
            return name, None, Verdict("list", "outside", "the file lies outside of the source's folder")
        for reference in (name, f"{folder}/{name}"):
            if (nbytes := self._size(reference)) is not None:
                return reference, nbytes, None
        return name, None, Verdict("list", "missing", f"there is no such file, nor {folder}/{name}")


def candidates(path: Place) -> list[Place]:
    """The tables at a place: the file itself, or those directly in the folder."""
    if is_file(path):
        return [path] if tables.is_table(path.name) else []
    found = (entry for entry in entries(path) if entry.nbytes is not None)
    return [path / entry.name for entry in found if tables.is_table(entry.name) and entry.name != CLASSES]


def fits(columns: list[str]) -> bool:
    return "image" in columns and any(name in columns for name in TEXTS)


def parse(row: dict[str, Any], place: str) -> Line:
    """Check a row of the table.

    Raises:
        ValueError: it names no image, or a value is not what its column is for.
    """
    if not row.get("image"):
        raise ValueError(f"{place} names no image; give the column `image` a file name")
    image, key = text(row["image"], "image", place), row.get("key")
    return Line(
        image=image,
        key=image if key is None or key == "" else str(label(key, "key", place)),
        captions=tuple(text(value, name, place) for name in TEXTS for value in listed(row.get(name))),
        labels=tuple(label(value, name, place) for name in LABELS for value in listed(row.get(name))),
        mask=text(row["mask"], "mask", place) if row.get("mask") else None,
        extra={name: value for name, value in row.items() if name not in KNOWN},
    )


def unpacked(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a CSV file with the JSON lists in its plural columns; a text that only begins with a bracket stays."""
    lists: dict[str, Any] = {}
    for name, kinds in ((TEXTS[0], (str,)), (LABELS[0], (str, int))):
        with suppress(ValueError, RecursionError):
            found = json.loads(row.get(name, ""))
            if isinstance(found, list) and all(type(value) in kinds for value in found):
                lists[name] = found
    return row | lists


def listed(value: Any) -> list[Any]:
    """The values of a cell; nothing for what is empty."""
    values = value if isinstance(value, list) else [value]
    return [value for value in values if value is not None and value != ""]


def text(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: the column `{column}` has {value!r}, which is no text")
    return value


def label(value: Any, column: str, place: str) -> str | int:
    return value if isinstance(value, int) and not isinstance(value, bool) else text(value, column, place)
