"""`sightline verify RUN`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Json, emit, facts


def verify(
    run: Annotated[Path, typer.Argument(help="A run's folder, below --runs.")],
    corpus: Annotated[str | None, typer.Option(help="Where the corpus is now; by default where it was.")] = None,
    json: Json = False,
) -> None:
    """Prove which data a run has seen: each recorded step against the plan of (corpus root, seed, epoch, position).

    Exits with 1 and names the first step that read something else. The corpus itself is checked by `sightline corpus verify`.

    \b
    Example:
      sightline verify runs/clip_demo-0123456789ab
    """
    from sightline.pipelines.train.verify import verify_run

    check = verify_run(run, corpus)
    result = asdict(check) | {"verdict": check.verdict}
    emit(result, json, facts(result))
    if check.differs is not None:
        raise typer.Exit(1)
