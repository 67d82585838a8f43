"""A corpus in a format that others read, with nothing lost: ingesting an export gives the same rows.

What is written is decided by the corpus' root and the options, which are noted down at the destination first. Files are made
locally and published whole, so what an interrupted export has published stays, and the same command writes what is missing.
`export.json`, which names the corpus and counts the files, comes last. Rows keep their order within a split, and each split its
files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Row
from sightline.pipelines.corpus.store import STAGING, LocalStore, Store, open_store
from sightline.pipelines.export import parquet, webdataset
from sightline.pipelines.export.folder import IMAGES, MASKS, write_folder
from sightline.pipelines.export.sample import Classes, class_names, classes_csv

TARGETS = ("webdataset", "parquet", "folder")
ROWS_PER_FILE = 8_192
FOLDERS = ("data", IMAGES, MASKS)  # where files are, besides directly at the destination
REPORT, CLASSES = "export.json", "classes.csv"
BEGUN = f"{STAGING}/{REPORT}"  # what an export that is not finished is of
UNSPLIT = "data"  # what files of rows without a split are called
Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]
Of = TypeVar("Of")
WRITERS: dict[str, Callable[[Path, Iterable[tuple[int, Row]], Classes], None]] = {
    "webdataset": webdataset.write_part,
    "parquet": parquet.write_part,
}


class Counted(Protocol):
    """What `count` gives."""

    def __call__(self, rows: Iterable[Of]) -> Iterator[Of]: ...


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: the corpus' root, the split (None: all), and how many rows and files."""

    corpus_root: str
    to: str
    split: str | None
    rows: int
    files: int


def export(
    corpus: Corpus,
    dest: str,
    to: str,
    *,
    split: str | None = None,
    rows_per_file: int = ROWS_PER_FILE,
    progress: Progress = lambda done, total: None,
) -> ExportReport:
    """Write a corpus, or one split of it, to an empty place: a folder, or any URL that fsspec knows; or finish that there.

    Args:
        to: `webdataset`, `parquet` or `folder`.
        rows_per_file: of the tar and Parquet files.
        progress: called with the rows that are written, and all.

    Raises:
        ValueError: no such target or split, or rows that the target cannot hold, or that are damaged.
        FileExistsError: there is something at the destination, and not this export, interrupted.
    """
    if to not in TARGETS:
        raise ValueError(f"there is no target {to!r}; choose from {', '.join(TARGETS)}")
    if rows_per_file < 1:
        raise ValueError(f"{rows_per_file} rows a file is out of range; give at least 1")
    chosen, classes = corpus.select(split), class_names(corpus)
    store, there = begin(corpus, dest, {"corpus_root": corpus.root, "to": to, "split": split, "rows_per_file": rows_per_file})
    counted = count(progress, len(chosen))
    if to == "folder":
        names = write_folder(store, counted(numbered(corpus, chosen)), classes, there)
    else:
        names = []
        for name, rows in parts(to, by_split(corpus, chosen), rows_per_file):
            if name in there:
                deque(counted(rows), maxlen=0)
            else:
                with store.temporary() as path:
                    WRITERS[to](path, counted(numbered(corpus, rows)), classes)
                    store.publish(path, name)
            names.append(name)
    if classes and to != "parquet":  # its schema has the names
        store.replace(CLASSES, classes_csv(classes))
    report = ExportReport(corpus.root, to, split, len(chosen), len(names))
    store.replace(REPORT, (json.dumps(asdict(report), indent=1) + "\n").encode())
    store.remove_folder(STAGING)
    return report


def begin(corpus: Corpus, dest: str, what: Mapping[str, Any]) -> tuple[Store, frozenset[str]]:
    """The place to write to, and the files that are there; it must be empty but for the beginning of the same export, and not
    within the corpus.
    """
    store = open_store(dest)
    if isinstance(store, LocalStore) and store.root.resolve().is_relative_to(Path(corpus.location).resolve()):
        raise ValueError(f"{dest} lies in the corpus {corpus.location}; give a folder outside of it")
    if isinstance(store, LocalStore) and store.root.is_file():
        raise FileExistsError(f"{dest} is a file; give an empty folder")
    found = [name for name in store.entries() if name != STAGING]
    begun = json.loads(store.read(BEGUN)) if store.size(BEGUN) is not None else None
    if found and begun != what:
        remedy = "give an empty place, or empty that one"
        if isinstance(begun, dict):
            options = ", ".join(f"{name} {value}" for name, value in begun.items() if value is not None)
            raise FileExistsError(f"{dest} is not empty: it holds an unfinished export of another kind ({options}); {remedy}")
        raise FileExistsError(f"{dest} is not empty (it holds {', '.join(found[:3])}); {remedy}")
    store.replace(BEGUN, json.dumps(what).encode())
    return store, frozenset(name for folder in FOLDERS for name in store.names(folder)).union(found)


def numbered(corpus: Corpus, rows: Rows) -> Iterator[tuple[int, Row]]:
    return ((int(row), corpus.checked_row(int(row))) for row in rows)


def count(progress: Progress, total: int) -> Counted:
    """A filter that lets all rows through and reports how many they were by now."""
    done = 0

    def counted(rows: Iterable[Of]) -> Iterator[Of]:
        nonlocal done
        for item in rows:
            yield item
            done += 1
            progress(done, total)

    return counted


def by_split(corpus: Corpus, chosen: Rows) -> Iterator[tuple[str, Rows]]:
    """The chosen rows, by a file name for their split."""
    rest = chosen
    for split in corpus.splits:
        of_split = corpus.select(split)
        yield file_name(split, corpus.splits), np.intersect1d(chosen, of_split)
        rest = np.setdiff1d(rest, of_split)
    yield UNSPLIT, rest


def file_name(split: str, splits: Iterable[str]) -> str:
    """A split's name as part of a file's, another one for each of the splits also on a disk that ignores case.

    `datasets` wants letters, digits and underscores there.
    """
    taken = {UNSPLIT, *(other.lower() for other in splits if other != split)}
    if re.fullmatch(r"[A-Za-z0-9_]{1,60}", split) and split.lower() not in taken:
        return split
    return f"split_{hashlib.sha256(split.encode()).hexdigest()[:12]}"


def parts(to: str, groups: Iterable[tuple[str, Rows]], rows_per_file: int) -> Iterator[tuple[str, Rows]]:
    """The files of each group, by name."""
    for prefix, rows in groups:
        pieces: Sequence[Rows] = [rows[start : start + rows_per_file] for start in range(0, len(rows), rows_per_file)]
        for i, piece in enumerate(pieces):
            yield (f"{prefix}-{i:06d}.tar" if to == "webdataset" else f"data/{prefix}-{i:05d}-of-{len(pieces):05d}.parquet"), piece
