"""`sightline train`."""

from __future__ import annotations

from sightline.cli.output import Json


def train(json: Json = False) -> None:
    """(being built)"""
    raise ValueError("being built")
