"""What a lens gives: numbers for programs, figures to look at, and two sentences for the person who does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Seen:
    """The outcome of one lens.

    Attributes:
        lens: its name.
        numbers: JSON.
        figures: files below the output folder.
        caption: what one sees.
        source: where the idea comes from.
    """

    lens: str
    numbers: Mapping[str, Any]
    figures: tuple[Path, ...]
    caption: str
    source: str

    def write(self, folder: Path) -> Path:
        """Keep the numbers beside the figures, in `<lens>.json`."""
        path = folder / f"{self.lens}.json"
        record = {
            "lens": self.lens,
            "caption": self.caption,
            "source": self.source,
            "figures": [figure.name for figure in self.figures],
            "numbers": self.numbers,
        }
        path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        return path
