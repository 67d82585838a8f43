"""BENCHMARKS.md: a section for each benchmark, rewritten by its script; the others stay as they are."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

REPORT = Path(__file__).resolve().parent.parent / "BENCHMARKS.md"
HEAD = "# Benchmarks\n\nWritten by `make bench` and `make campaign`.\n"


def environment(*packages: str) -> str:
    """Versions and the machine, for the line that says what was measured on."""
    found = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{found}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores"


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def write_section(title: str, body: str, path: Path = REPORT) -> None:
    """Replace the section of that title, or append it."""
    text = path.read_text() if path.exists() else HEAD
    section = f"## {title}\n\n{body.strip()}\n"
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        path.write_text(f"{text.rstrip()}\n\n{section}")
    else:
        path.write_text(f"{text[: found.start()]}{section}\n{text[found.end() :]}".rstrip() + "\n")


def section(
    title: str, command: str, what: str, packages: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a section made of one table, and write it."""
    body = f"`{command}`: {what}; {environment(*packages)}.\n\n{table(header, rows)}"
    print(f"{title}\n\n{body}", flush=True)
    write_section(title, body)
