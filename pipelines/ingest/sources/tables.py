"""Tables of text: CSV, JSON lines and Parquet, read row by row with the place of each row for messages.

CSV values are the text that stands in the file; JSON and Parquet values are what they are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightline.pipelines.ingest.sources.arrow_files import python_rows
from sightline.pipelines.ingest.sources.files import csv_columns, read_csv
from sightline.pipelines.ingest.sources.place import Place, open_file

SUFFIXES = (".csv", ".jsonl", ".parquet")


def is_table(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def columns(path: Place) -> list[str]:
    """A table's columns (of JSON lines: the first line's keys); none where it cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return csv_columns(path)
    if suffix == ".parquet":
        try:
            with open_file(path.parent, path.name) as file:
                return list(pq.read_schema(file).names)
        except pa.ArrowInvalid:
            return []
    try:
        return next((list(row) for _, row in read_json_lines(path)), [])
    except ValueError:
        return []


def is_text(path: Place, column: str) -> bool:
    """Whether a table's column holds text, as all do but a Parquet file's columns of bytes or structs."""
    if not path.name.lower().endswith(".parquet"):
        return True
    with open_file(path.parent, path.name) as file:
        kind = pq.read_schema(file).field(column).type
    return not (pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def rows(path: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """A table's rows, each with its place (`captions.csv line 3`).

    Raises:
        ValueError: the table is damaged, and where.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        yield from read_csv(path)
    elif suffix == ".parquet":
        yield from read_parquet(path)
    else:
        yield from read_json_lines(path)


def read_json_lines(path: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object a line."""
    with open_file(path.parent, path.name) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path.name} line {number} is no JSON ({error}); write one object a line") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path.name} line {number} is no JSON object; write one object a line")
            yield f"{path.name} line {number}", row


def read_parquet(path: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, a batch at a time."""
    number = 0
    try:
        with open_file(path.parent, path.name) as file:
            for batch in pq.ParquetFile(file).iter_batches():
                for row in python_rows(batch):
                    number += 1
                    yield f"{path.name} row {number}", row
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name} is a damaged Parquet file ({error}); write it again") from None
