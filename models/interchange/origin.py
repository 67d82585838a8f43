"""`sightline.json` beside the files of an export: the artifact that they came from, and the sha256 of each file.

Whoever changes a file (another library that trains on and saves there) has made another model, and the origin no longer holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sightline.models.artifact import Artifact

ORIGIN = "sightline.json"
FORMAT = "sightline-export/1"


def write_origin(folder: Path, target: str, artifact: Artifact) -> dict[str, str]:
    """Describe the files of a finished export; gives the sha256 of each."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    described = {"format": FORMAT, "target": target, "artifact": asdict(artifact), "files": files}
    (folder / ORIGIN).write_text(json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return files


def origin(folder: Path) -> Mapping[str, Any] | None:
    """The fields of `artifact.json` of the exported artifact; None where there are none, or the files are no longer those.

    Raises:
        ValueError: `sightline.json` is damaged.
    """
    path = folder / ORIGIN
    if not path.is_file():
        return None
    try:
        described = json.loads(path.read_text())
        if described["format"] != FORMAT:
            raise ValueError(f"{path} has format {described['format']!r}; this version reads {FORMAT!r}")
        same = all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in described["files"].items())
        return dict(described["artifact"]) if same else None
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); export again, or delete it to use the folder without it") from error


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
