"""The ingest job on Ray Data: a plan freezes what to do, Ray decides who does it, the commit checks that all was done.

One row of the Ray dataset is one shard: the map function builds it whole, writes it, and returns its record. So blocks
that Ray bundles, repeats or loses change no byte: a repeated shard has the same name, and a lost one fails the commit.
An interrupted job leaves done records and no manifest; the same job again skips what is done.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import ray.data

from sightline.pipelines.corpus.manifest import commit
from sightline.pipelines.corpus.plan import Plan
from sightline.pipelines.corpus.shards import ShardRecord, done_records
from sightline.pipelines.corpus.store import LocalStore
from sightline.pipelines.ingest.build import build_shard, forget_attempts
from sightline.pipelines.ingest.prepare import Prepared, prepare
from sightline.pipelines.ingest.report import IngestOptions, IngestReport, Progress
from sightline.pipelines.ingest.sources.item import Source

MAX_TASKS = 256  # a task costs the driver about 6 ms, so that many shards have to share their tasks
LIBRARIES = ("sightline", "ray", "pyarrow", "pillow", "simplejpeg")
Watch = Callable[[Progress], None]


def ingest(
    source: str | Path, dest: str | Path, options: IngestOptions | None = None, progress: Watch | None = None
) -> IngestReport:
    """Write the corpus of a source, or finish it, or report on the finished one. The caller has initialised Ray.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: the source is of no known kind, holds nothing, or contradicts itself.
        FileExistsError: the destination holds something else.
    """
    prepared = prepare(source, dest, options or IngestOptions())
    return prepared.report or run(prepared, progress)


def run(prepared: Prepared, progress: Watch | None = None) -> IngestReport:
    """Build the shards that are missing, and commit."""
    begun = time.monotonic()
    store, plan = prepared.store, prepared.plan
    records = done_records(store, plan.plan_id)
    inherited = sum(record.planned for record in records.values())
    todo = [index for index in range(plan.shards) if index not in records]
    watch = progress or (lambda _: None)
    watch(progress_of(plan, records, inherited, time.monotonic() - begun))
    forget_attempts(store, plan)
    for record in build_all(store, plan, prepared.source, todo):
        records[record.index] = record
        watch(progress_of(plan, records, inherited, time.monotonic() - begun))
    seconds = time.monotonic() - begun
    facts = {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "seconds": round(seconds, 3),
        "images_per_s": round((plan.rows - inherited) / seconds, 3),
    }
    return IngestReport.of(commit(store, plan, records, prepared.classes, facts))


def build_all(store: LocalStore, plan: Plan, source: Source, todo: Sequence[int]) -> Iterator[ShardRecord]:
    """Build shards on Ray, and yield their records as they come, in any order.

    Raises:
        OSError: a worker could not write.
    """
    if not todo:
        return
    with quiet_ray_data():
        shards = ray.data.from_items([{"shard": i} for i in todo], override_num_blocks=min(len(todo), MAX_TASKS))
        for row in shards.map(partial(build_row, store, plan, source), num_cpus=1).iter_rows():
            if row["failure"]:
                raise OSError(row["failure"])
            yield ShardRecord.from_json(json.loads(row["record"]))


def build_row(store: LocalStore, plan: Plan, source: Source, row: dict[str, int]) -> dict[str, str]:
    """What a worker does with one row. Records travel as JSON: Arrow would unite their `codes` into one struct."""
    try:
        record = build_shard(store, plan, source, row["shard"])
    except OSError as error:  # a full disk, a missing permission: the user's to mend, so no traceback of Ray's around it
        return {"record": "", "failure": f"cannot write {error.filename or store.root}: {error.strerror or error}"}
    return {"record": json.dumps(record.to_json()), "failure": ""}


@contextmanager
def quiet_ray_data() -> Iterator[None]:
    """Ray Data without its own bars and remarks on the console; its log file in Ray's session folder keeps them."""
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    consoles = [handler for handler in logging.getLogger("ray.data").handlers if not hasattr(handler, "baseFilename")]
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL)
    try:
        with ray.data.DataContext.current(context):
            yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)


def progress_of(plan: Plan, records: dict[int, ShardRecord], inherited: int, seconds: float) -> Progress:
    rows = sum(record.planned for record in records.values())
    return Progress(
        shards=len(records),
        all_shards=plan.shards,
        rows=rows,
        all_rows=plan.rows,
        rejected=sum(record.rejected for record in records.values()),
        fresh_rows=rows - inherited,
        seconds=seconds,
    )
