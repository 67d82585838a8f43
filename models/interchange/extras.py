"""Packages that only some people need are imported where they are used, and their absence names the extra that brings them."""

from __future__ import annotations

import importlib
from typing import Any


def need(package: str, extra: str) -> Any:
    """The package, imported.

    Raises:
        ModuleNotFoundError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f'{error.name} is not installed; pip install "sightline[{extra}]"') from error
