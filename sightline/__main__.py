"""`python -m sightline` and the console script `sightline`."""

from __future__ import annotations

import sys
from pathlib import Path

from sightline.cli import app


def main() -> None:
    # Users' own recipes and scores (`my_module:name`) lie where they type; the console script alone would not look there.
    sys.path.append(str(Path.cwd()))
    app(prog_name="sightline")


if __name__ == "__main__":
    main()
