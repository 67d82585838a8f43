"""A plain folder: `images/`, `masks/` and `captions.jsonl`, which `sightline ingest` reads back as a captions table.

A line of the table holds the key, the file names, all captions, the classes' names, and each field of `extra` under its own
name. The table comes last: a folder without one is unfinished.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from typing import Any

from sightline.pipelines.corpus.schema import Row, canonical_json
from sightline.pipelines.corpus.store import Store
from sightline.pipelines.export.sample import Classes, extension, stem

TABLE, IMAGES, MASKS = "captions.jsonl", "images", "masks"
COLUMNS = ("key", "image", "mask", "captions", "caption", "labels", "label")  # what the table means by these is fixed


def write_folder(store: Store, rows: Iterable[tuple[int, Row]], classes: Classes, there: Collection[str]) -> list[str]:
    """Write the files of numbered rows but those that are there, then the table; the names of all files.

    Raises:
        ValueError: a row holds what a captions table cannot.
    """
    names: list[str] = []
    with store.temporary() as table:
        with table.open("wb") as lines:
            for number, row in rows:
                image, mask = f"{IMAGES}/{stem(number, row.key)}.{extension(row.format)}", None
                files = {image: row.image}
                if row.mask is not None:
                    mask = f"{MASKS}/{stem(number, row.key)}.png"
                    files[mask] = row.mask
                for name, data in files.items():
                    if name not in there:
                        store.replace(name, bytes(data))
                names += files
                lines.write(canonical_json(line(row, image, mask, classes)).encode() + b"\n")
        store.publish(table, TABLE)
    return [*names, TABLE]


def line(row: Row, image: str, mask: str | None, classes: Classes) -> dict[str, Any]:
    extra = json.loads(row.extra)
    wrong = next((f"the field {name!r} in its extra" for name in COLUMNS if name in extra), None)
    if "" in row.captions:
        wrong = "an empty caption"
    if len(set(row.labels)) != len(row.labels):
        wrong = "one label twice"
    if wrong:
        raise ValueError(f"{row.key!r} has {wrong}, which a captions table cannot hold; export to parquet or webdataset")
    labels = [classes[label] for label in row.labels]
    return {**extra, "key": row.key, "image": image, "mask": mask, "captions": row.captions, "labels": labels}
