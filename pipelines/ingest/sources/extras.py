"""The other columns of a table, as the `extra` of the one item that several of its rows make."""

from __future__ import annotations

from typing import Any

from sightline.pipelines.corpus.schema import SPLIT, canonical_json


def joined(rows: list[dict[str, Any]], what: str) -> str:
    """Canonical JSON: a column's value where the rows agree, the list of values where they do not.

    Raises:
        ValueError: the rows (of `what`, for the message) are in several splits, or a value has no JSON form.
    """
    extra: dict[str, Any] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        agreed = all(value == values[0] for value in values)
        if name == SPLIT and not agreed:
            raise ValueError(f"{what} is put into several splits; choose one")
        extra[name] = values[0] if agreed else values
    try:
        return canonical_json(extra)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{what} has a value without a JSON form ({error})") from None
