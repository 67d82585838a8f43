"""Progress of long work on standard error: a live line on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sightline.cli.output import log

if TYPE_CHECKING:
    from sightline.pipelines.ingest.report import Progress as IngestProgress
    from sightline.pipelines.train.rank import Step

LOG_EVERY_S = 15.0


@contextmanager
def training_bar(steps: int) -> Iterator[Callable[[Step], None]]:
    """A function to call with every step done: shows loss, lr, samples/s, the wait for data, MFU and the time left."""
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
            waited = step.seconds["data"] / sum(step.seconds.values())
            text = f"loss {step.loss:.3f}  lr {step.lr:.1e}  {step.samples_per_s:,.0f} samples/s  data wait {waited:.0%}"
            text += f"  MFU {step.mfu:.0%}" if step.mfu is not None else ""
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


@contextmanager
def ingest_bar() -> Iterator[Callable[[IngestProgress], None]]:
    """A function to call with how far an ingest is: shows images/s, MB/s, errors so far and the time left."""
    columns = (
        TextColumn("ingest"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards  {task.description}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=log, disable=not log.is_terminal) as progress:
        task = progress.add_task("starting", total=None)
        last_line = time.monotonic()

        def show(now: IngestProgress) -> None:
            nonlocal last_line
            seconds = now.seconds if now.fresh_rows else float("inf")
            text = (
                f"{now.fresh_rows / seconds:,.0f} images/s  {now.fresh_bytes / 1e6 / seconds:,.1f} MB/s  {now.rejected:,} rejected"
            )
            progress.update(task, total=now.all_shards, completed=now.shards, description=text)
            if (
                not log.is_terminal
                and now.fresh_rows
                and (time.monotonic() - last_line > LOG_EVERY_S or now.shards == now.all_shards)
            ):
                last_line = time.monotonic()
                left = now.seconds / now.fresh_rows * (now.all_rows - now.rows)
                log.print(f"ingest  shard {now.shards:,} of {now.all_shards:,}  {text}  {left:,.0f} s left")

        yield show
