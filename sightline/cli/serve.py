"""`sightline serve`."""

from __future__ import annotations

from sightline.cli.output import Json


def serve(json: Json = False) -> None:
    """(being built)"""
    raise ValueError("being built")
