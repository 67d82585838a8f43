"""What every verb prints: text for people, and with `--json` one JSON object on the last line of standard output."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object on the last line.")]

# Progress and remarks go to standard error: standard output carries the result alone.
log = Console(stderr=True, highlight=False)


def emit(result: Mapping[str, Any], as_json: bool, *tables: Table | str) -> None:
    """Print the result: the tables for a person, or the mapping as one line of JSON for a program."""
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    out = Console(highlight=False)
    for table in tables or (facts(result),):
        out.print(table)


def facts(values: Mapping[str, Any], title: str | None = None) -> Table:
    """A two-column table of names and values."""
    return rows(("", ""), [(name, shown(value)) for name, value in values.items()], title)


def rows(header: Sequence[str], lines: Sequence[Sequence[str]], title: str | None = None) -> Table:
    """A table with the first column to the left and the others to the right."""
    table = Table(title=title, title_justify="left", box=None, show_header=any(header), pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def shown(value: Any) -> str:
    """Numbers short, everything else as it is."""
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
