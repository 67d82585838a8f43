"""`sightline corpus why CORPUS UID|KEY`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from sightline.cli.output import Json, emit, rows, shown

if TYPE_CHECKING:
    from sightline.pipelines.corpus.why import Account


def why(
    corpus: Annotated[str, typer.Argument(help="A corpus: a folder or a URL.")],
    row: Annotated[str, typer.Argument(metavar="UID|KEY", help="A key, or a uid or sha256 (its first digits suffice).")],
    json: Json = False,
) -> None:
    """Tell every decision on a row: why it is in the corpus, or why it is not.

    Which plan listed it, what became of it there and in retries, where it lies, what each column says of it and whether
    each filter lets it pass, what the server said that it was downloaded from, and whether it was forgotten.

    \b
    Example:
      sightline corpus why corpora/photos 5e2f3c0d
      sightline corpus why corpora/photos dogs/0042.jpg --json
    """
    from sightline.pipelines.corpus.why import why as explain

    accounts = explain(corpus, row)
    tables = [table for account in accounts for table in told(account)]
    emit({"corpus": corpus, "asked": row, "accounts": [asdict(account) for account in accounts]}, json, *tables)


def told(account: Account) -> list[Table]:
    """One table a key: decisions, then places."""
    lines: list[tuple[str, str]] = []
    if account.forgotten:
        lines.append(("forgotten", "rows of this name were taken out by `corpus forget`, and may not come back"))
    for one in account.decisions:
        where = f"plan {one.plan}, chunk {one.chunk}, input {one.plan_row}"
        lines.append((one.verdict, f"generation {one.generation} ({one.change}), {where}"))
        if one.reason:
            lines.append(("", f"{one.reason['stage']}/{one.reason['code']}: {one.reason['message']}"))
            lines += [
                ("", f"{name} {shown(one.reason[name])}") for name in ("http_status", "nbytes") if one.reason[name] is not None
            ]
    for place in account.places:
        lines.append(("row", f"{place.row:,}, which is row {place.row_of_file:,} of {place.file}"))
        lines += [(name, spelled(value)) for name, value in place.facts.items()]
        if place.answer is not None:
            said = {name: value for name, value in asdict(place.answer).items() if name != "key" and value is not None}
            lines += [(f"server: {name.replace('_', '-')}", value) for name, value in said.items()]
        lines += [(f"column {name}", verdict(value)) for name, value in place.columns.items()]
    table = rows(("", ""), [], account.key)
    table.columns[1].justify = "left"
    for name, text in lines:
        table.add_row(name, Text(text))  # a caption in brackets is no markup
    return [table]


def spelled(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else shown(value)


def verdict(value: Any) -> str:
    """A filter's verdict or a score; None where the column is of other rows."""
    if value is None:
        return "no value; make the column again where it should have one"
    return ("passes" if value else "does not pass") if isinstance(value, bool) else shown(value)
