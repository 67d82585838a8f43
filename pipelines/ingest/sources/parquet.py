"""Parquet or Arrow files (.parquet; .arrow as file or stream) with the images' bytes in them, as Hugging Face keeps them.

    image, img, jpg, jpeg, png, webp    binary, or a struct with `bytes` (and `path`)
    captions, caption, sentences, sentence, text, texts    the first of them: text, a list of it, or structs with `raw`
    labels, label                       numbers (names from Hugging Face's schema, also of lists; -1 is none) or names
    mask                                like the image
    key                                 the key, which must be unique; without it the first of id, filename, file_name and
                                        the image's path that is there in every row and unique, else FILE#ROW; the choice
                                        is in the config, because one more file may change it

Other columns go into `extra` where they have a JSON form (NaN as null), the rest is left out and named in the plan's config.
A column `extra` of JSON objects, as `sightline corpus export` writes it, is `extra` itself.
`train-00000-of-00002.parquet` gives the split, unless there is a column `split`. All files have one schema. A reference is
FILE#ROW, a block a row group; the one last read is held, on the disk where it is large.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import pyarrow as pa

from sightline.pipelines.corpus.schema import SPLIT, canonical_json
from sightline.pipelines.ingest.sources.arrow_files import SUFFIXES, ArrowFile, open_arrow
from sightline.pipelines.ingest.sources.files import class_id, class_list, label_ids, read_class_list
from sightline.pipelines.ingest.sources.item import Item, distinct, is_utf8, wrong
from sightline.pipelines.ingest.sources.place import Held, Place, entries, is_file

IMAGE = ("image", "img", "jpg", "jpeg", "png", "webp")
CAPTIONS = ("captions", "caption", "sentences", "sentence", "text", "texts")
LABELS = ("labels", "label")
MASK = "mask"
KEYS = ("id", "filename", "file_name", "image.path")
SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test)\b.*", re.IGNORECASE)
SPLITS = {"validation": "val", "valid": "val", "dev": "val"}
DATA = "data"
MASK_MARK = "#mask"
EXTRA, PATH, HAS_MASK, BLOCK = "extra", "image.path", "#has_mask", "#block"


@dataclass(frozen=True)
class Columns:
    """Which column is for what, and which of the others have a JSON form."""

    image: str
    captions: str | None
    label: str | None
    mask: str | None
    others: tuple[str, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class ParquetFiles:
    """Files of one schema below a folder, by name relative to it."""

    root: Place
    files: tuple[str, ...]
    kind: ClassVar[str] = "parquet"
    layout: ClassVar[str] = "Parquet or Arrow files with a column of image bytes (image, img, jpg ...)"

    @classmethod
    def found(cls, path: Place) -> bool:
        root, files = files_at(path)
        return any(image_column(schema) is not None for name in files[:1] if (schema := schema_of(root, name)) is not None)

    @classmethod
    def open(cls, path: Place) -> ParquetFiles:
        root, files = files_at(path)
        if not files:
            raise ValueError(f"{path} has no Parquet or Arrow files: expected {cls.layout}")
        return cls(root, tuple(files))

    def config(self) -> dict[str, Any]:
        return {"left_out": list(self._columns.left_out), "key": self._key or "FILE#ROW"}

    def classes(self) -> list[tuple[int, str]]:
        if named := read_class_list(self.root):
            return named
        if named := class_names(self._schema, self._columns.label):
            return named
        found = (label for _, row in self._rows for label in labels_of(row.get(self._columns.label or "")))
        return class_list(label for label in found if is_utf8(str(label)))

    def items(self) -> Iterator[Item]:
        ids = label_ids(self.classes())
        return distinct((reference, self._item(reference, row, self._key, ids)) for reference, row in self._rows)

    def read(self, reference: str) -> bytes:
        name, _, row = reference.removesuffix(MASK_MARK).rpartition("#")
        column = MASK if reference.endswith(MASK_MARK) else self._columns.image
        file = self._file.get(name, lambda: open_arrow(self.root, name))
        group, position = file.locate(int(row))
        columns = [self._columns.image, *([self._columns.mask] if self._columns.mask else [])]
        held = self._group.get((name, group), lambda: file.read_group(group, columns))
        value = held.column(column)[position]
        if pa.types.is_struct(value.type) and value.is_valid:
            value = value["bytes"]
        if not value.is_valid:
            raise OSError(f"{reference} holds no bytes: the {column} is null, or only a path to a file elsewhere")
        return bytes(value.as_buffer())

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "files": self.files, "_columns": self._columns}

    @cached_property
    def _file(self) -> Held[ArrowFile]:
        return Held()

    @cached_property
    def _group(self) -> Held[pa.Table]:
        return Held()

    @cached_property
    def _schema(self) -> pa.Schema:
        return open_arrow(self.root, self.files[0]).schema

    @cached_property
    def _columns(self) -> Columns:
        return choose(self._schema, self.files[0])

    @cached_property
    def _rows(self) -> list[tuple[str, dict[str, Any]]]:
        """Every row by its reference, without bytes; with `image.path`, `block` in a field of its own."""
        return [row for name in self.files for row in self._read_rows(name)]

    def _read_rows(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        file = open_arrow(self.root, name)
        check_same(self._schema, self.files[0], file.schema, name)
        chosen = self._columns
        wanted = [column for column in (chosen.captions, chosen.label, *chosen.others) if column]
        image = file.schema.field(chosen.image).type
        paths = [f"{chosen.image}.path"] if pa.types.is_struct(image) and image.get_field_index("path") >= 0 else []
        masks = [chosen.mask] if chosen.mask else []
        row = 0
        for group in range(file.groups):
            for values in file.read_rows(group, wanted, paths[0] if paths else None, masks[0] if masks else None):
                yield f"{name}#{row}", {**values, BLOCK: file.block(name, group)}
                row += 1

    @cached_property
    def _key(self) -> str | None:
        """The column that gives the keys; None for FILE#ROW."""
        if "key" in self._schema.names:
            return "key"
        for column in KEYS:
            values = [row.get(column) for _, row in self._rows]
            if all(isinstance(value, str | int) and value != "" for value in values) and len(set(map(str, values))) == len(values):
                return column
        return None

    def _item(self, reference: str, row: dict[str, Any], key: str | None, ids: dict[str | int, int]) -> Item:
        chosen = self._columns
        extra = {name: row[name] for name in chosen.others if name not in (key, EXTRA) and row[name] is not None}
        extra |= extra_of(row.get(EXTRA))
        if key not in (PATH, "key") and row.get(PATH) is not None:
            extra["image_path"] = row[PATH]
        name = reference.rpartition("#")[0].rpartition("/")[2]
        if SPLIT not in extra and (match := SPLIT_NAME.fullmatch(name)):
            split = match.group(1).lower()
            extra[SPLIT] = SPLITS.get(split, split)
        if key is not None and (not isinstance(row[key], str | int) or row[key] == ""):
            raise ValueError(f"{reference} has the key {row[key]!r}; give each row a text or a number")
        labels = labels_of(row.get(chosen.label or ""))
        texts = [label for label in labels if is_utf8(str(label))]
        odd = wrong("text_not_utf8", "a label is not UTF-8; correct it") if len(texts) < len(labels) else None
        try:
            about = canonical_json(jsonable(extra))
        except RecursionError:
            about, odd = "{}", odd or wrong("no_json", "its other columns are nested too deeply; make them flatter")
        return Item(
            key=reference if key is None else str(row[key]),
            image=reference,
            captions=captions_of(row.get(chosen.captions or ""), reference, empty=EXTRA in row),
            labels=tuple(class_id(label, ids, reference) for label in texts),
            mask=reference + MASK_MARK if row.get(HAS_MASK) else None,
            extra=about,
            verdict=odd,
            block=row[BLOCK],
        )


def files_at(path: Place) -> tuple[Place, list[str]]:
    """The folder, and the files: the place itself, those directly in it, or those in its `data/`."""
    if is_file(path):
        return path.parent, [path.name] if path.name.lower().endswith(SUFFIXES) else []
    for folder in ("", f"{DATA}/"):
        listed = [entry for entry in entries(path / DATA if folder else path) if entry.nbytes is not None]
        if found := [folder + entry.name for entry in listed if entry.name.lower().endswith(SUFFIXES)]:
            return path, found
    return path, []


def schema_of(root: Place, name: str) -> pa.Schema | None:
    """A file's schema; None where it cannot be read: whoever opens the file hears why."""
    try:
        return open_arrow(root, name).schema
    except ValueError:
        return None


def image_column(schema: pa.Schema) -> str | None:
    return next((name for name in IMAGE if name in schema.names and holds_bytes(schema.field(name).type)), None)


def holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def has_json(kind: pa.DataType) -> bool:
    types = pa.types
    if types.is_struct(kind):
        return all(has_json(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or types.is_dictionary(kind):
        return has_json(kind.value_type)
    plain = (types.is_boolean, types.is_integer, types.is_floating, types.is_string, types.is_large_string, types.is_null)
    return any(test(kind) for test in plain)


def choose(schema: pa.Schema, name: str) -> Columns:
    """Which column is for what.

    Raises:
        ValueError: there is no column of image bytes.
    """
    image = image_column(schema)
    if image is None:
        have = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(f"{name} has no column of image bytes ({', '.join(IMAGE)}: binary, or a struct with bytes); it has {have}")
    captions = next((column for column in CAPTIONS if column in schema.names), None)
    label = next((column for column in LABELS if column in schema.names), None)
    mask = MASK if MASK in schema.names and holds_bytes(schema.field(MASK).type) else None
    rest = [field for field in schema if field.name not in (image, captions, label, mask)]
    others = tuple(field.name for field in rest if has_json(field.type))
    if twice := [column for column, times in Counter(schema.names).items() if times > 1]:
        raise ValueError(f"{name} has two columns called {twice[0]!r}; rename one")
    return Columns(image, captions, label, mask, others, tuple(field.name for field in rest if field.name not in others))


def check_same(first: pa.Schema, first_name: str, other: pa.Schema, name: str) -> None:
    """One schema for all files; the order of the columns is free.

    Raises:
        ValueError: a column is missing or has another type.
    """
    for column in dict.fromkeys((*first.names, *other.names)):
        types = [str(schema.field(column).type) if column in schema.names else "none" for schema in (first, other)]
        if types[0] != types[1]:
            raise ValueError(
                f"the column {column!r} is {types[0]} in {first_name} and {types[1]} in {name}; "
                "write the files with one schema, or ingest them one by one"
            )


def class_names(schema: pa.Schema, column: str | None) -> list[tuple[int, str]]:
    """The classes of a label column in Hugging Face's schema metadata; none where it names none."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    while isinstance(feature, list | dict) and "names" not in feature:  # lists of classes nest them
        feature = (
            feature[0] if isinstance(feature, list) and feature else feature.get("feature") if isinstance(feature, dict) else None
        )
    names = feature["names"] if isinstance(feature, dict) else []
    return list(enumerate(names)) if isinstance(names, list) else []


def labels_of(value: Any) -> list[str | int]:
    """The labels in a cell.

    Raises:
        ValueError: one is neither a number nor a name.
    """
    values = value if isinstance(value, list) else [value]
    if odd := [label for label in values if label is not None and not isinstance(label, str | int)]:
        raise ValueError(f"the label {odd[0]!r} is neither a whole number nor a name; correct the column, or rename it")
    return [label for label in values if label is not None and label != "" and label != -1]


def extra_of(value: Any) -> dict[str, Any]:
    """What a column `extra` holds: an object, or one as JSON; anything else is a column like others."""
    if value is None:
        return {}
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            found = None
    return found if isinstance(found, dict) else {EXTRA: value}


def captions_of(value: Any, place: str, *, empty: bool) -> tuple[str, ...]:
    """The captions in a cell; empty ones are none, but in an export of ours.

    Raises:
        ValueError: they are no text.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    texts = [entry.get("raw") if isinstance(entry, dict) else entry for entry in values]
    for text, entry in zip(texts, values, strict=True):
        if entry is not None and not isinstance(text, str):
            raise ValueError(f"{place} has the caption {entry!r}, which is no text; give a text or a list of texts")
    return tuple(text for text in texts if text or (empty and text is not None))


def jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [jsonable(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
