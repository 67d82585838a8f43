"""Parquet as the Hugging Face Hub keeps image datasets: `data/SPLIT-00000-of-00002.parquet` with a struct of bytes and path.

The schema's metadata tells `datasets` (and the Hub's viewer) what is an image and what the classes are called. Row
groups are small, because a reader that wants one image reads its row group.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightline.pipelines.corpus.schema import Row
from sightline.pipelines.export.sample import Classes, extension, stem

MAX_CLASSES = 100_000
GROUP_ROWS, GROUP_BYTES = 256, 64 * 2**20
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_part(path: Path, rows: Iterable[tuple[int, Row]], classes: Classes) -> None:
    """One Parquet file of numbered rows."""
    with path.open("wb") as file, pq.ParquetWriter(file, schema(classes), compression="zstd") as writer:
        for group in groups(record(number, row) for number, row in rows):
            writer.write_batch(pa.RecordBatch.from_pylist(group, schema=schema(classes)))


def schema(classes: Classes) -> pa.Schema:
    def value(dtype: str) -> dict[str, Any]:
        return {"dtype": dtype, "_type": "Value"}

    def several(feature: dict[str, Any]) -> dict[str, Any]:
        return {"feature": feature, "_type": "Sequence"}  # its name before `datasets` 4 and, read as `List`, since

    # Their ids are positions in a list, gaps included; ids beyond any list of names stay plain numbers.
    names = (
        [classes.get(i, f"class {i}") for i in range(max(classes, default=-1) + 1)] if max(classes, default=0) < MAX_CLASSES else []
    )
    features = {
        "key": value("string"),
        "image": {"_type": "Image"},
        "captions": several(value("string")),
        "labels": several({"names": names, "_type": "ClassLabel"} if names else value("int64")),
        "mask": {"_type": "Image"},
        "extra": value("string"),
    }
    columns = [
        ("key", pa.string()),
        ("image", IMAGE),
        ("captions", pa.list_(pa.string())),
        ("labels", pa.list_(pa.int64())),
        ("mask", IMAGE),
        ("extra", pa.string()),
    ]
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": features}}, ensure_ascii=False)})


def record(number: int, row: Row) -> dict[str, Any]:
    name = stem(number, row.key)
    return {
        "key": row.key,
        "image": {"bytes": bytes(row.image), "path": f"{name}.{extension(row.format)}"},
        "captions": list(row.captions),
        "labels": list(row.labels),
        "mask": None if row.mask is None else {"bytes": bytes(row.mask), "path": f"{name}.png"},
        "extra": row.extra,
    }


def groups(records: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Records by the row group, of a bounded size: 256 large images would be gigabytes."""
    group: list[dict[str, Any]] = []
    nbytes = 0
    for item in records:
        group.append(item)
        nbytes += len(item["image"]["bytes"])
        if len(group) == GROUP_ROWS or nbytes >= GROUP_BYTES:
            yield group
            group, nbytes = [], 0
    if group:
        yield group
