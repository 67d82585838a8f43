"""WebDataset: tar files in which the members of a sample follow each other and share a name.

    000000012-dog.jpg       the image's bytes, as they are
    000000012-dog.json      {"captions": [...], "extra": {...}, "key": ..., "labels": [...]}
    000000012-dog.mask.png  the label map, where there is one
    000000012-dog.txt       the first caption, for readers that want one text

Headers say nothing of who wrote the file or when, so equal rows give equal bytes.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from sightline.pipelines.corpus.schema import Row, canonical_json
from sightline.pipelines.export.sample import Classes, extension, stem


def write_part(path: Path, rows: Iterable[tuple[int, Row]], classes: Classes) -> None:
    """One tar file of numbered rows."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, row in rows:
            for ending, data in sorted(members(row)):
                member = tarfile.TarInfo(f"{stem(number, row.key)}.{ending}")  # its defaults: owner 0, time 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def members(row: Row) -> Iterator[tuple[str, bytes | memoryview]]:
    """The files of a sample, by what follows its name."""
    yield extension(row.format), row.image
    about = {"key": row.key, "captions": row.captions, "labels": row.labels, "extra": json.loads(row.extra)}
    yield "json", canonical_json(about).encode()
    if row.mask is not None:
        yield "mask.png", row.mask
    if row.captions:
        yield "txt", row.captions[0].encode()
