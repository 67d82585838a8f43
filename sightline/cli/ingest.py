"""`sightline ingest`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sightline import settings
from sightline.cli import output
from sightline.cli.output import Json

if TYPE_CHECKING:  # heavy
    from sightline.pipelines.ingest.report import Progress as JobProgress


def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder with a captions table, or a folder per class.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="The corpus: a fresh folder, or one that this command began.")],
    kind: Annotated[str | None, typer.Option(help="captions_table or class_folder; found out by default.")] = None,
    shard_rows: Annotated[int | None, typer.Option(help="Inputs per shard; by default about 64 shards.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rows' order.")] = 0,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; by default a local Ray.")] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs of a local Ray; by default all.")] = None,
    json: Json = False,
) -> None:
    """Write a corpus from images and captions, on Ray Data.

    SOURCE is a folder with a captions table (captions.csv, .jsonl or .parquet with columns image and caption or
    captions; perhaps label, mask, split ...) or a folder per class (CLASS/*.jpg, or {train,val,test}/CLASS/*.jpg).
    DEST gets Arrow shards, a Parquet sidecar, a manifest with a root hash, and a table of whatever could not be read,
    with the reason. The same command again finishes what was interrupted.

    \b
    Example:
      sightline ingest photos/ corpora/photos
      sightline ingest photos/captions.csv corpora/photos --json
    """
    from sightline.pipelines.ingest.prepare import prepare
    from sightline.pipelines.ingest.report import IngestOptions

    prepared = prepare(source, dest, IngestOptions(kind=kind, shard_rows=shard_rows, seed=seed))
    report = prepared.report
    if report is None:  # Ray takes seconds to start; mistakes and finished corpora need not wait for it
        from sightline.infra.session import ray_session
        from sightline.pipelines.ingest.job import run

        with ray_session(address or settings.ray_address(), num_cpus=cpus, debug=settings.debug()), bar() as progress:
            report = run(prepared, progress)
    result = {
        "seen": report.seen,
        "kept": report.kept,
        "filtered": report.filtered,
        "errors": report.errors,
        "root": report.root,
        "images_per_s": report.images_per_s,
        "seconds": report.seconds,
        "corpus": dest,
        "rejected": report.rejected_by_code,
    }
    output.emit(result, json)


@contextmanager
def bar() -> Iterator[Callable[[JobProgress], None]]:
    """A progress bar on standard error: shards, images/s, errors so far, time left."""
    columns = (
        TextColumn("ingest"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards · {task.fields[rate]:,.0f} images/s · {task.fields[rejected]:,} rejected ·"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.log) as display:
        task = display.add_task("", total=None, rate=0.0, rejected=0)

        def show(now: JobProgress) -> None:
            rate = now.fresh_rows / now.seconds if now.fresh_rows else 0.0
            display.update(task, total=now.all_shards, completed=now.shards, rate=rate, rejected=now.rejected)

        yield show
