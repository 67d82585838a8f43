"""A Parquet or Arrow file as groups of rows: what a listing reads without the image bytes, what a worker reads with them.

A Parquet file's groups are its row groups. An Arrow file (file or stream, told by its first bytes) is one group of mapped
batches. Memory stays bounded whatever a writer made of its files: a row group of more than `HELD_BYTES` (some writers make one
of a whole file) is streamed into a temporary file and mapped, and so is an Arrow file of a network.
"""

from __future__ import annotations

import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightline.pipelines.ingest.sources.place import Place, mounted, open_file

SUFFIXES = (".parquet", ".arrow")
MAGIC = b"ARROW1"
HELD_BYTES = 128 * 2**20  # of a row group, uncompressed
STREAMED_ROWS, STREAMED_BYTES = 64, 2**20  # at a time: images, and bytes of a column chunk (without, Arrow takes it in whole)


class ArrowFile(Protocol):
    """A file of rows in groups."""

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def groups(self) -> int: ...

    def block(self, name: str, group: int) -> str:
        """A name for a group that says its size too."""
        ...

    def locate(self, row: int) -> tuple[int, int]:
        """The group of a row, and its position there."""
        ...

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Columns of a group."""
        ...

    def read_rows(self, group: int, columns: Sequence[str], path: str | None, mask: str | None) -> Iterator[dict[str, Any]]:
        """Rows of a group as Python values; `path` (`image.path`) under that name, and whether there is a mask."""
        ...


@dataclass(frozen=True)
class ParquetFile:
    file: pq.ParquetFile
    starts: tuple[int, ...]

    @property
    def schema(self) -> pa.Schema:
        return self.file.schema_arrow

    @property
    def groups(self) -> int:
        return int(self.file.num_row_groups)

    def block(self, name: str, group: int) -> str:
        return f"{name}#group {group} of {self.file.metadata.row_group(group).total_byte_size} bytes"

    def locate(self, row: int) -> tuple[int, int]:
        group = bisect_right(self.starts, row) - 1
        return group, row - self.starts[group]

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        about = self.file.metadata.row_group(group)
        chunks = (about.column(i) for i in range(about.num_columns))
        nbytes = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
        try:
            if nbytes <= HELD_BYTES:
                return self.file.read_row_group(group, columns=list(columns)).combine_chunks()
            return on_disk(self.file.iter_batches(STREAMED_ROWS, [group], list(columns), use_threads=False))
        except pa.ArrowException as error:
            raise OSError(f"row group {group} is damaged ({error})") from None

    def read_rows(self, group: int, columns: Sequence[str], path: str | None, mask: str | None) -> Iterator[dict[str, Any]]:
        # `image.path` reads that leaf alone: the bytes beside it stay on the disk. A mask is read to see whether it is there.
        leaves = [*columns, *([path] if path else []), *([mask] if mask else [])]
        batches = self.file.iter_batches(row_groups=[group], columns=leaves, batch_size=1024)
        if not leaves:
            yield from ({} for _ in range(self.file.metadata.row_group(group).num_rows))
            return
        for batch in batches:
            yield from plain_rows(pa.Table.from_batches([batch]), columns, path, mask)


@dataclass(frozen=True)
class IpcFile:
    table: pa.Table
    nbytes: int

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    @property
    def groups(self) -> int:
        return 1

    def block(self, name: str, group: int) -> str:
        return f"{name} of {self.nbytes} bytes"

    def locate(self, row: int) -> tuple[int, int]:
        return 0, row

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        return self.table.select(list(columns))

    def read_rows(self, group: int, columns: Sequence[str], path: str | None, mask: str | None) -> Iterator[dict[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from plain_rows(pa.Table.from_batches([batch]), columns, path, mask)


def plain_rows(table: pa.Table, columns: Sequence[str], path: str | None, mask: str | None) -> Iterator[dict[str, Any]]:
    plain = table.select(list(columns))
    if path is not None:
        plain = plain.append_column("image.path", pc.struct_field(table.column(path.partition(".")[0]), "path"))
    if mask is not None:
        column = table.column(mask)
        data = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        plain = plain.append_column("#has_mask", pc.is_valid(data))
    if not plain.column_names:
        yield from ({} for _ in range(table.num_rows))
    else:
        yield from python_rows(plain)


def python_rows(rows: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Rows as Python values, also where a text is no UTF-8."""
    try:
        yield from rows.to_pylist()
    except UnicodeDecodeError:  # before the first row
        names = rows.schema.names
        for values in zip(*(map(value_of, column) for column in rows.columns), strict=True):
            yield dict(zip(names, values, strict=True))


def value_of(value: pa.Scalar[Any]) -> Any:
    """A value whose text need not be UTF-8: its odd bytes become lone surrogates, which `item.sound` finds."""
    try:
        return value.as_py()
    except UnicodeDecodeError:
        is_plain = pa.types.is_string(value.type) or pa.types.is_large_string(value.type)
        return value.as_buffer().to_pybytes().decode("utf-8", "surrogateescape") if is_plain else "\udcff"  # something in a list


def on_disk(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Batches as a table that lies in a temporary file, which goes when the table does."""
    with tempfile.NamedTemporaryFile(prefix="sightline-") as file:
        writer = None
        for batch in batches:
            writer = writer or pa.ipc.new_file(file, batch.schema)
            writer.write_batch(batch)
        assert writer is not None, "a row group has rows"
        writer.close()
        file.flush()
        return pa.ipc.open_file(pa.memory_map(file.name)).read_all()  # the mapping outlives the name


def map_file(root: Place, name: str) -> pa.NativeFile:
    """A file as mapped memory; one of a network by way of a temporary file."""
    if isinstance(root, Path):
        with mounted(root):
            return pa.memory_map(str(root / name))
    with tempfile.NamedTemporaryFile(prefix="sightline-") as copy, open_file(root, name) as file:
        shutil.copyfileobj(file, copy, 2**20)
        copy.flush()
        return pa.memory_map(copy.name)


def open_arrow(root: Place, name: str) -> ArrowFile:
    """A file below a root.

    Raises:
        ValueError: it is damaged.
    """
    try:
        if name.lower().endswith(".parquet"):
            file = pq.ParquetFile(open_file(root, name), buffer_size=STREAMED_BYTES)
            groups = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            return ParquetFile(file, tuple(accumulate(groups, initial=0)))
        data = map_file(root, name)
        is_file = data.read(len(MAGIC)) == MAGIC
        data.seek(0)
        reader = pa.ipc.open_file(data) if is_file else pa.ipc.open_stream(data)
        return IpcFile(reader.read_all(), data.size())
    except (pa.ArrowInvalid, EOFError) as error:
        kind = "Parquet" if name.lower().endswith(".parquet") else "Arrow"
        raise ValueError(f"{name} is a damaged {kind} file ({error}); write it again") from None
