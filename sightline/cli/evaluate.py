"""`sightline evaluate`."""

from __future__ import annotations

from sightline.cli.output import Json


def evaluate(json: Json = False) -> None:
    """(being built)"""
    raise ValueError("being built")
