"""`python -m sightline` and the console script `sightline`."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from sightline.cli import app


def main() -> None:
    # Users' own recipes and scores (`my_module:name`) lie where they type; the console script alone would not look there.
    sys.path.append(str(Path.cwd()))
    try:
        app(prog_name="sightline")
        status: int | str | None = 0
    except SystemExit as end:
        status = end.code
    # Everything is closed by now. Ray's and Arrow's C++ threads may still run, and once in a while one aborts the process while the
    # interpreter takes itself apart: a finished ingest then ended with SIGABRT.
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    main()
