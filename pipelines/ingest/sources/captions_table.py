"""A folder with a captions table: CSV, JSON lines or Parquet with a column `image` and a column `caption` or
`captions`.

Rows of the same image are one item, with its captions in the table's order (an empty caption is none). `label` or
`labels` are names or ids of `classes.csv` (id,name); without that file the distinct names, sorted, are the classes.
`mask` is a file too. Every other column goes into `extra` under its name: the value where the image's rows agree, the
list of values where they do not. In a CSV file, `captions` and `labels` are a JSON list, or one text. Files are looked
up in the folder, then in its `images/` (masks: `masks/`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from sightline.pipelines.corpus.schema import SPLIT, canonical_json
from sightline.pipelines.ingest.sources import tables
from sightline.pipelines.ingest.sources.files import class_ids, escapes, file_size, read_classes
from sightline.pipelines.ingest.sources.item import Item, Verdict

CLASSES = "classes.csv"
TEXTS, LABELS = ("captions", "caption"), ("labels", "label")
KNOWN = ("image", "mask", *TEXTS, *LABELS)


@dataclass(frozen=True)
class Line:
    """A row of the table, checked."""

    image: str
    captions: tuple[str, ...]
    labels: tuple[str | int, ...]
    mask: str | None
    extra: dict[str, Any]


@dataclass(frozen=True)
class CaptionsTable:
    """A captions table, and the folder that its files lie in."""

    root: Path
    table: Path
    kind: ClassVar[str] = "captions_table"
    layout: ClassVar[str] = "a captions table (captions.csv, .jsonl or .parquet with columns `image` and `caption` or `captions`)"

    @classmethod
    def found(cls, path: Path) -> bool:
        """There is a table at all: whoever has one wants it read, or to hear what it lacks."""
        return bool(candidates(path))

    @classmethod
    def open(cls, path: Path) -> CaptionsTable:
        found = candidates(path)
        if not found:
            raise ValueError(f"{path} has no captions table: expected {cls.layout}")
        fitting = [table for table in found if fits(tables.columns(table))]
        if not fitting:
            have = "; ".join(f"{table.name} has {', '.join(tables.columns(table)) or 'none'}" for table in found)
            raise ValueError(f"a captions table needs the columns `image` and `caption` or `captions`; {have}")
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
        for line in self._lines:
            groups.setdefault(line.image, []).append(line)
        ids = {name: number for number, name in self._class_list}
        for lines in groups.values():
            yield self._item(lines, ids)

    def read(self, reference: str) -> bytes:
        return (self.root / reference).read_bytes()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "table": self.table}  # what was listed stays here: workers only read files

    @cached_property
    def _lines(self) -> list[Line]:
        return [parse(row, place) for place, row in tables.rows(self.table)]

    @cached_property
    def _class_list(self) -> list[tuple[int, str]]:
        path = self.root / CLASSES
        if rows := read_classes(path, "id", "name"):
            names = [row["name"] for row in rows]
            if len(set(names)) != len(names):
                raise ValueError(f"{path} gives one name to two classes, and labels are names; tell them apart")
            return sorted(zip(class_ids(path, rows), names, strict=True))
        return list(enumerate(sorted({str(label) for line in self._lines for label in line.labels})))

    def _item(self, lines: list[Line], ids: dict[str, int]) -> Item:
        image = lines[0].image
        masks = {line.mask for line in lines}
        if len(masks) > 1:
            raise ValueError(f"{self.table.name} gives the image {image!r} several masks; give it one")
        reference, nbytes, verdict = self._find(image, "images")
        mask, mask_nbytes = lines[0].mask, None
        if mask is not None:
            mask, mask_nbytes, wrong = self._find(mask, "masks")
            verdict = verdict or (wrong and Verdict("mask", f"mask_{wrong.code}", f"the mask {mask}: {wrong.message}"))
        return Item(
            key=image,
            image=reference,
            nbytes=nbytes,
            captions=tuple(caption for line in lines for caption in line.captions),
            labels=tuple(dict.fromkeys(self._class_id(label, ids) for line in lines for label in line.labels)),
            mask=mask,
            mask_nbytes=mask_nbytes,
            extra=self._extra(lines),
            verdict=verdict,
        )

    def _class_id(self, label: str | int, ids: dict[str, int]) -> int:
        """The id of a class given by name or by id; without `classes.csv` a number is a name like any other."""
        if str(label) in ids:
            return ids[str(label)]
        if str(label).isdecimal() and int(label) in ids.values():
            return int(label)
        raise ValueError(f"{self.table.name} has the label {label!r}; {CLASSES} has {', '.join(ids)}")

    def _extra(self, lines: list[Line]) -> str:
        extra: dict[str, Any] = {}
        for name in dict.fromkeys(name for line in lines for name in line.extra):
            values = [line.extra.get(name) for line in lines]
            agreed = all(value == values[0] for value in values)
            if name == SPLIT and not agreed:
                raise ValueError(f"{self.table.name} puts the image {lines[0].image!r} into several splits; choose one")
            extra[name] = values[0] if agreed else values
        try:
            return canonical_json(extra)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.table.name}: {lines[0].image!r} has a value without a JSON form ({error})") from None

    def _find(self, name: str, folder: str) -> tuple[str, int | None, Verdict | None]:
        """The reference to a file that the table names, its size in bytes, and what is wrong with it."""
        if escapes(name):
            return name, None, Verdict("list", "outside", "the file lies outside of the source's folder")
        for reference in (name, f"{folder}/{name}"):
            if (nbytes := file_size(self.root / reference)) is not None:
                return reference, nbytes, None
        return name, None, Verdict("list", "missing", f"there is no such file, nor {folder}/{name}")


def candidates(path: Path) -> list[Path]:
    """The tables at a place: the file itself, or those directly in the folder."""
    if path.is_file():
        return [path] if tables.is_table(path) else []
    return sorted(entry for entry in path.iterdir() if tables.is_table(entry) and entry.name != CLASSES)


def fits(columns: list[str]) -> bool:
    return "image" in columns and any(name in columns for name in TEXTS)


def parse(row: dict[str, Any], place: str) -> Line:
    """Check a row of the table.

    Raises:
        ValueError: it names no image, or a value is not what its column is for.
    """
    if not row.get("image"):
        raise ValueError(f"{place} names no image; give the column `image` a file name")
    return Line(
        image=text(row["image"], "image", place),
        captions=tuple(text(value, name, place) for name in TEXTS for value in listed(row.get(name))),
        labels=tuple(label(value, name, place) for name in LABELS for value in listed(row.get(name))),
        mask=text(row["mask"], "mask", place) if row.get("mask") else None,
        extra={name: value for name, value in row.items() if name not in KNOWN},
    )


def listed(value: Any) -> list[Any]:
    """The values of a cell: a list as it is or in JSON; nothing for what is empty."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):  # a text may begin with a bracket
            value = json.loads(value)
    values = value if isinstance(value, list) else [value]
    return [value for value in values if value is not None and value != ""]


def text(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{place}: the column `{column}` has {value!r}, which is no text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: the column `{column}` has {value!r}, which is no valid Unicode") from None
    return value


def label(value: Any, column: str, place: str) -> str | int:
    return value if isinstance(value, int) and not isinstance(value, bool) else text(value, column, place)
