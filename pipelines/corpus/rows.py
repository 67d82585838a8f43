"""Rows as Python values, read back from a shard's Arrow file in order; for whoever has to look at all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj

import pyarrow as pa

from sightline.pipelines.corpus.schema import BYTES, ROW_FIELDS, Row
from sightline.pipelines.corpus.store import LocalStore, Store

COPY_BYTES = 2**22


@contextmanager
def on_disk(store: Store, name: str) -> Iterator[Path]:
    """A file's bytes as they lie in the store now: no cache is trusted (unlike `Store.local`)."""
    if isinstance(store, LocalStore):
        yield store.path(name)
        return
    with store.temporary() as temporary:
        with store.open(name) as source, temporary.open("wb") as target:
            copyfileobj(source, target, COPY_BYTES)
        yield temporary


def file_rows(path: Path) -> Iterator[Row]:
    """All rows of an intact shard."""
    with pa.memory_map(str(path)) as mapped:
        file = pa.ipc.open_file(mapped)
        for number in range(file.num_record_batches):
            yield from batch_rows(file.get_batch(number))


def batch_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    """The rows of one batch; images and masks are copied when they are reached."""
    columns = {name: batch.column(name) for name in ROW_FIELDS}
    values = {name: column.to_pylist() for name, column in columns.items() if name not in BYTES}
    for i in range(batch.num_rows):
        row = {name: columns[name][i].as_py() if name in BYTES else values[name][i] for name in ROW_FIELDS}
        yield Row(**{**row, "captions": tuple(row["captions"] or ()), "labels": tuple(row["labels"] or ())})
