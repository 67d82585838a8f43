"""The only file that reads environment variables; everything below the front door gets values as arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping


def debug() -> bool:
    """SIGHTLINE_DEBUG=1: keep tracebacks of user errors, and show the workers' own output."""
    return os.environ.get("SIGHTLINE_DEBUG", "") not in ("", "0")


def ray_address() -> str | None:
    """RAY_ADDRESS, as Ray's job server sets it for the commands that it runs; None: start a local Ray."""
    return os.environ.get("RAY_ADDRESS") or None


def torchrun_rank() -> int:
    """RANK, as torchrun sets it for the processes that it starts; 0 for a process of its own."""
    return int(os.environ.get("RANK") or 0)


def default(settings: Mapping[str, str]) -> None:
    """Set variables for libraries that read them, and for the processes that this one starts; what is set already stays."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)
