"""What the targets share: file names that are safe everywhere, and the names of classes.

A key may be any text (slashes, NUL, `..`, ten thousand characters), so a file's name holds the row's number, which is unique and
sorts, and then what is harmless of the key, for people; the key itself stands in the metadata.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from functools import cache

import pyarrow.compute as pc
from PIL import Image

from sightline.pipelines.corpus.reader import Corpus

Classes = dict[int, str]
SLUG_LENGTH = 60
USUAL = {"jpeg": "jpg", "tiff": "tif"}  # where the usual ending is another one than Pillow would choose


def stem(number: int, key: str) -> str:
    """A file's name without its ending: no dot in it, since WebDataset ends a sample's key at the first."""
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", key.rpartition(".")[0] or key)[:SLUG_LENGTH].strip("-")
    return f"{number:09d}-{slug}" if slug else f"{number:09d}"


def extension(format: str) -> str:
    """The ending of a format's files.

    Raises:
        ValueError: the format is none.
    """
    if not re.fullmatch("[a-z0-9]{1,12}", format):
        raise ValueError(f"{format!r} is no format of an image; the corpus is damaged or hostile")
    return endings().get(format, format)


@cache
def endings() -> dict[str, str]:
    """The ending of each format of Pillow: the format's name where files are called so, else the first that Pillow lists."""
    found: dict[str, list[str]] = {}
    for ending, format in Image.registered_extensions().items():
        found.setdefault(format.lower(), []).append(ending.removeprefix("."))
    return {format: format if format in known else known[0] for format, known in found.items()} | USUAL


def class_names(corpus: Corpus) -> Classes:
    """A name of its own for every id that the corpus names or uses; unnamed ids, and namesakes, get their number into it."""
    used = pc.unique(pc.list_flatten(corpus.sidecar(["labels"]).column("labels"))).to_pylist()
    names = dict.fromkeys(used, "") | {entry["id"]: entry["name"] for entry in corpus.manifest.classes}
    often = Counter(names.values())
    return {i: name if name and often[name] == 1 else f"{name or 'class'} {i}" for i, name in sorted(names.items())}


def classes_csv(classes: Classes) -> bytes:
    """The table `id,name`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("id", "name"), *classes.items()])
    return text.getvalue().encode()
