"""`python -m sightline` and the console script `sightline`."""

from __future__ import annotations

from sightline.cli import app


def main() -> None:
    app(prog_name="sightline")


if __name__ == "__main__":
    main()
