"""Progress of long work on standard error: a live line on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sightline.cli.output import log

if TYPE_CHECKING:
    from sightline.pipelines.train.loop import Step

LOG_EVERY_S = 15.0


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[Step], None]]:
    """A function to call with every step done: shows loss, samples/s and the time left."""
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log, disable=not log.is_terminal, transient=True) as progress:
        task = progress.add_task("starting", total=steps)
        last_line = time.monotonic()

        def show(step: Step) -> None:
            nonlocal last_line
            text = f"loss {step.loss:.3f}  {step.samples_per_s:,.0f} samples/s"
            progress.update(task, completed=step.step, description=text)
            if not log.is_terminal and (time.monotonic() - last_line > LOG_EVERY_S or step.step == steps):
                last_line = time.monotonic()
                log.print(f"train  step {step.step:,} of {steps:,}  {text}")

        yield show


@contextmanager
def stages_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (stage, done, total): one bar a stage."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log, disable=not log.is_terminal, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done)

        yield show
