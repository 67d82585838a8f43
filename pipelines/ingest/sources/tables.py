"""Tables of text on disk: CSV, JSON lines and Parquet, read row by row with the place of each row for messages.

CSV values are the text that stands in the file; JSON and Parquet values are what they are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightline.pipelines.ingest.sources.files import csv_columns, read_csv

SUFFIXES = (".csv", ".jsonl", ".parquet")


def is_table(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def columns(path: Path) -> list[str]:
    """A table's columns (of JSON lines: the first line's keys); none where it cannot be read."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return csv_columns(path)
    if suffix == ".parquet":
        try:
            with path.open("rb") as file:
                return list(pq.read_schema(file).names)
        except pa.ArrowInvalid:
            return []
    try:
        return next((list(row) for _, row in read_json_lines(path)), [])
    except ValueError:
        return []


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object a line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"{path.name} line {number} is no JSON ({error}); write one object a line") from None
            if not isinstance(row, dict):
                raise ValueError(f"{path.name} line {number} is no JSON object; write one object a line")
            yield f"{path.name} line {number}", row


def read_parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a Parquet file, a batch at a time."""
    number = 0
    try:
        with path.open("rb") as file:
            for batch in pq.ParquetFile(file).iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path.name} row {number}", row
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path.name} is a damaged Parquet file ({error}); write it again") from None
