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
    # Everything is closed by now. Rarely, a command that had done and said all still ended with SIGABRT. Why is not known; the C++
    # threads of libraries, which outlive Ray's shutdown, are a guess. Leaving here keeps the interpreter's own end out of it.
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else int(status is not None))


if __name__ == "__main__":
    main()
