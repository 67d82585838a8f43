"""Which kind of source lies at a place. A new kind is a new file beside this one and a line in `KINDS`, most specific
first.
"""

from __future__ import annotations

from pathlib import Path

from sightline.pipelines.ingest.sources.captions_table import CaptionsTable
from sightline.pipelines.ingest.sources.class_folder import ClassFolder
from sightline.pipelines.ingest.sources.item import Source

KINDS: dict[str, type[Source]] = {kind.kind: kind for kind in (CaptionsTable, ClassFolder)}


def open_source(path: Path, kind: str | None = None) -> Source:
    """The source at a place; its kind is found, or given by name.

    Raises:
        FileNotFoundError: there is nothing at that place.
        ValueError: nothing that can be ingested is there, or not of that kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"there is no kind of source {kind!r}; choose from {', '.join(KINDS)}")
    path = path.absolute()  # it travels to processes that run elsewhere
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; name a folder with images to ingest")
    if kind is not None:
        return KINDS[kind].open(path)
    for candidate in KINDS.values():
        if candidate.found(path):
            return candidate.open(path)
    layouts = "; or ".join(candidate.layout for candidate in KINDS.values())
    raise ValueError(f"{path} holds nothing that can be ingested (found {contents(path)}); expected {layouts}")


def contents(path: Path) -> str:
    """What is at a place, in a few words."""
    if path.is_file():
        return f"a {path.suffix or 'nameless'} file"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "an empty folder"
