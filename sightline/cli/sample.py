"""`sightline sample`."""

from __future__ import annotations

from sightline.cli.output import Json


def sample(json: Json = False) -> None:
    """(being built)"""
    raise ValueError("being built")
