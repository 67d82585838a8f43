"""What the sources that lie in a folder share: safe references to its files, and lists of classes."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterator
from pathlib import Path

# Files that operating systems leave behind next to images; anything else in a folder of images is an input.
SIDECAR_FILES = frozenset({"thumbs.db", ".ds_store", "desktop.ini", "ehthumbs.db", ".directory"})
SIDECAR_FOLDERS = frozenset({"__macosx", ".git", ".ipynb_checkpoints"})


def is_sidecar_file(name: str) -> bool:
    """Whether a file only accompanies images: folder settings, thumbnails, and macOS's resource forks (`._name`)."""
    return name.lower() in SIDECAR_FILES or name.startswith("._")


def is_sidecar_folder(name: str) -> bool:
    """Whether a folder beside class folders is certainly no class."""
    return name.lower() in SIDECAR_FOLDERS


def file_size(path: Path) -> int | None:
    """The size of a regular file in bytes; None for what is missing, a folder, a pipe or a device."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def escapes(reference: str) -> bool:
    """Whether a reference leads out of the folder that it is relative to; links in it may: its owner made them."""
    path = Path(os.path.normpath(reference))
    return path.is_absolute() or path.parts[:1] == (os.pardir,)


def read_csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its place (`classes.csv line 3`); values are text as it stands.

    Raises:
        ValueError: it is not UTF-8, not CSV, or a row has more or fewer fields than the header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
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


def csv_columns(path: Path) -> list[str]:
    """The header of a CSV file, as far as it can be read; whoever reads the rows hears what is wrong with them."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            return next(csv.reader(file), [])
        except csv.Error:
            return []


def read_classes(path: Path, *columns: str) -> list[dict[str, str]]:
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


def class_ids(path: Path, rows: list[dict[str, str]]) -> list[int]:
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
