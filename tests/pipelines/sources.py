"""What the tests of the sources share: folders, tars and tables made here, and readings of a source."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightline.pipelines.ingest.sources.item import Item, Source

# Composed and decomposed forms are different keys and different captions, and stay what they are.
NFC, NFD = (unicodedata.normalize(form, "Một cậu bé, đang đá bóng") for form in ("NFC", "NFD"))


def tree(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """A folder of files; text is written as UTF-8."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def items(source: Source) -> dict[str, Item]:
    listed = list(source.items())
    by_key = {item.key: item for item in listed}
    assert len(by_key) == len(listed)
    return by_key


def codes(found: Mapping[str, Item]) -> dict[str, str]:
    return {key: item.verdict.code for key, item in found.items() if item.verdict}


def extra(item: Item) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(item.extra)
    return value


def tar(members: list[tuple[str, bytes | str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def put(place: Any, files: Mapping[str, bytes | str]) -> Any:
    """Files below a place of any file system."""
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def bytes_of(source: Source) -> dict[str, bytes]:
    """Every readable image by key, read as a worker does: by a source that travelled."""
    worker = pickle.loads(pickle.dumps(source))
    return {item.key: worker.read(item.image) for item in source.items() if item.verdict is None}


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None, group: int = 2) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, row_group_size=group)
    return buffer.getvalue()


def arrow(rows: list[dict[str, Any]], stream: bool) -> bytes:
    buffer, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return buffer.getvalue()
