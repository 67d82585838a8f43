"""`sightline sample`: the embedded corpus, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Json, emit, facts, log


def sample(
    dest: Annotated[Path, typer.Argument(help="Folder to write: absent or empty.", show_default=False)],
    train: Annotated[int, typer.Option(help="Training scenes.")] = 12_000,
    val: Annotated[int, typer.Option(help="Scenes for tuning: the pairs of training, digits never trained on.")] = 500,
    test: Annotated[int, typer.Option(help="Test scenes: three of four show one digit, all 60 pairs in turn.")] = 1_600,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the square images in pixels.")] = 48,
    json: Json = False,
) -> None:
    """Write scenes of coloured, handwritten digits with captions, labels and masks.

    The digits are real scans that ship with scikit-learn. Twelve of the sixty (colour, digit) pairs never occur in the
    training and tuning splits: they are the zero-shot test.

    \b
    Example:
      sightline sample data/digits
      sightline sample /tmp/small --train 400 --val 40 --test 80 --seed 7 --json
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from sightline.pipelines.sample.spec import SPLITS, SampleSpec
    from sightline.pipelines.sample.write import write_sample

    spec = SampleSpec(seed=seed, train=train, val=val, test=test, size=size)
    columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log, transient=True, disable=not log.is_terminal) as bar:
        task = bar.add_task("scenes", total=spec.scenes)
        report = write_sample(dest, spec, lambda done, total: bar.update(task, completed=done, total=total))
    counts: dict[str, int] = {split: spec.count(split) for split in SPLITS}
    result = {"dest": str(report.dest), **counts, "size": spec.size, "seed": spec.seed, "digest": report.digest}
    if report.reused:
        log.print(f"{report.dest} holds this sample already", soft_wrap=True)
    emit(
        {**result, "held_out": list(report.held_out), "reused": report.reused},
        json,
        facts({**result, "held out": ", ".join(report.held_out)}),
    )
