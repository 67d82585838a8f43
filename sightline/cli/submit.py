"""`sightline submit`."""

from __future__ import annotations

from sightline.cli.output import Json


def submit(json: Json = False) -> None:
    """(being built)"""
    raise ValueError("being built")
