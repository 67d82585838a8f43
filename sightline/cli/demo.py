"""`sightline demo`."""

from __future__ import annotations

from sightline.cli.output import Json


def demo(json: Json = False) -> None:
    """(being built)"""
    raise ValueError("being built")
