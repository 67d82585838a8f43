"""What the sources that lie in a folder share: which names are pictures, safe references to files, and lists of classes."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from io import TextIOWrapper
from pathlib import PurePosixPath
from typing import TextIO

from PIL import Image

from sightline.models.codec import FORMATS
from sightline.pipelines.ingest.sources.place import Place, file_size, open_file

CLASSES = "classes.csv"
# Files that operating systems leave behind next to images.
SIDECAR_FILES = frozenset({"thumbs.db", ".ds_store", "desktop.ini", "ehthumbs.db", ".directory"})
SIDECAR_FOLDERS = frozenset({"__macosx", ".git", ".ipynb_checkpoints"})
# Names that end like this are no pictures, whatever the bytes. Other unknown endings are an input, for the bytes decide.
NO_PICTURES = frozenset(
    {"csv", "doc", "docx", "htm", "html", "json", "jsonl", "log", "md", "mp3", "mp4", "npy", "npz", "parquet", "pdf"}
    | {"py", "rst", "sh", "tar", "tgz", "tsv", "txt", "url", "wav", "xml", "yaml", "yml", "zip"}
)


@cache
def picture_endings() -> tuple[str, ...]:
    """The endings of the names of pictures that our decoder reads, without the dot: Pillow's, and the formats' own names."""
    known = {ending.removeprefix(".") for ending, format in Image.registered_extensions().items() if format in FORMATS}
    return tuple(sorted(known | {format.lower() for format in FORMATS}))


def is_sidecar_file(name: str) -> bool:
    """Whether a file only accompanies images: folder settings, thumbnails, and macOS's resource forks (`._name`)."""
    return name.lower() in SIDECAR_FILES or name.startswith("._")


def is_no_picture(name: str) -> bool:
    """Whether a file in a folder of images is none by its name."""
    return is_sidecar_file(name) or name.lower().rpartition(".")[2] in NO_PICTURES


def is_sidecar_folder(name: str) -> bool:
    """Whether a folder beside class folders is certainly no class."""
    return name.lower() in SIDECAR_FOLDERS


def escapes(reference: str) -> bool:
    """Whether a reference leads out of the folder that it is relative to; links in it may: its owner made them."""
    path = PurePosixPath(os.path.normpath(reference))
    return path.is_absolute() or path.parts[:1] == (os.pardir,)


def open_text(path: Place, errors: str = "strict") -> TextIO:
    return TextIOWrapper(open_file(path.parent, path.name), encoding="utf-8-sig", errors=errors, newline="")


def read_csv(path: Place) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its place (`classes.csv line 3`); values are text as it stands.

    Raises:
        ValueError: it is not UTF-8, not CSV, or a row has more or fewer fields than the header.
    """
    try:
        with open_text(path) as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise ValueError(f"{path.name} has two columns of one name ({', '.join(header)}); rename one")
            for fields in reader:
                if not fields:
                    continue  # an empty line
                place = f"{path.name} line {reader.line_num}"
                if len(fields) != len(header):
                    raise ValueError(
                        f"{place} has {len(fields)} fields, its header {len(header)}; quote values that contain commas"
                    )
                yield place, dict(zip(header, fields, strict=True))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path.name} is not CSV as RFC 4180 has it ({error}); check its quotes") from None


def csv_columns(path: Place) -> list[str]:
    """The header of a CSV file, as far as it can be read; whoever reads the rows hears what is wrong with them."""
    with open_text(path, errors="replace") as file:
        try:
            return next(csv.reader(file), [])
        except csv.Error:
            return []


def read_classes(path: Place, *columns: str) -> list[dict[str, str]]:
    """The rows of a `classes.csv` that must have some columns; empty where there is no such file.

    Raises:
        ValueError: a column is missing, or the file is damaged.
    """
    if file_size(path) is None:
        return []
    found = csv_columns(path)
    if missing := [name for name in columns if name not in found]:
        raise ValueError(f"{path} has no column {missing[0]!r}; it needs {', '.join(columns)} and has {', '.join(found) or 'none'}")
    return [row for _, row in read_csv(path)]


def class_ids(path: Place, rows: list[dict[str, str]]) -> list[int]:
    """The ids of a `classes.csv`: its column `id`, or else the position of each row.

    Raises:
        ValueError: an id is no number from 0 to 2^31 - 1, or occurs twice; or a class has no name.
    """
    if not all(row["name"] for row in rows):
        raise ValueError(f"{path} has a class without a name; give it one")
    texts = [row.get("id", str(position)) for position, row in enumerate(rows)]
    for text in texts:
        if not (text.isascii() and text.isdigit() and int(text) < 2**31):
            raise ValueError(f"{path} has the class id {text!r}; ids are whole numbers from 0")
    ids = [int(text) for text in texts]
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path} gives one id to two classes; give each its own")
    return ids


def read_class_list(root: Place) -> list[tuple[int, str]]:
    """Ids and names of a folder's `classes.csv` (id,name), by id; none where there is no such file.

    Raises:
        ValueError: the file is damaged, or gives one name to two classes.
    """
    path = root / CLASSES
    rows = read_classes(path, "id", "name")
    names = [row["name"] for row in rows]
    if len(set(names)) != len(names):
        raise ValueError(f"{path} gives one name to two classes, and labels are names; tell them apart")
    return sorted(zip(class_ids(path, rows), names, strict=True))


def class_list(labels: Iterable[str | int]) -> list[tuple[int, str]]:
    """Classes from the labels themselves, where nothing names them: numbers stay what they are, and are their own names;
    of other labels the distinct ones, sorted, are the classes.
    """
    distinct = set(labels)
    texts = {str(label) for label in distinct}
    if all(text.isascii() and text.isdigit() and int(text) < 2**31 and str(int(text)) == text for text in texts):
        return sorted((int(text), text) for text in texts)
    return list(enumerate(sorted(texts)))


def label_ids(classes: Sequence[tuple[int, str]]) -> dict[str | int, int]:
    """Ids by what a label may say: a number, or in text a class's name, or its number where no class is called so."""
    numbers = dict.fromkeys(number for number, _ in classes)
    return {number: number for number in numbers} | {str(n): n for n in numbers} | {name: number for number, name in classes}


def class_id(label: str | int, ids: Mapping[str | int, int], place: str) -> int:
    """The id of a class given by name or by number, from `label_ids`.

    Raises:
        ValueError: there is no such class.
    """
    try:
        return ids[label]
    except KeyError:
        texts = [name for name in ids if isinstance(name, str)]
        names = [name for name in texts if name != str(ids[name])] or texts
        known = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        raise ValueError(f"{place} has the label {label!r}; the classes are {known}") from None
