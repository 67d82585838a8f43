"""The ingest job on Ray Data: a plan freezes what to do, Ray decides who does it, the commit checks that all was done.

One row of the Ray dataset is one shard: the map function builds it whole, writes it, and returns its record. So blocks
that Ray bundles, repeats or loses change no byte: a repeated shard has the same name, and a lost one fails the commit.
An interrupted job leaves done records and no manifest; the same job again skips what is done.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray.data

from sightline.fetch.result import FetchOptions
from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.gc import discard
from sightline.pipelines.corpus.manifest import read_manifest
from sightline.pipelines.corpus.plan import Plan
from sightline.pipelines.corpus.shards import ShardRecord, done_records
from sightline.pipelines.corpus.store import Store
from sightline.pipelines.ingest.build import Apart, Conversion, Kept, build_shard, forget_attempts
from sightline.pipelines.ingest.fetch.downloads import Downloads
from sightline.pipelines.ingest.prepare import Prepared, prepare
from sightline.pipelines.ingest.report import IngestOptions, IngestReport, Progress
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.item import Source
from sightline.pipelines.ingest.sources.url_list import UrlList

QUEUED, AT_WORK = 4, 2  # shards that a worker has or waits for, and those that it has: one to convert, one to flush
MAX_TASKS = 256  # a task costs the driver about 6 ms, so that many shards have to share their tasks
# What Ray shall reserve for a worker: libraries (300 MB), a batch of rows in three copies (200 MB), one image of the largest
# allowed size while it is decoded and resampled. Small machines then run fewer workers rather than out of memory.
WORKER_BYTES = 2**30
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
    """Build the shards that are missing, and commit.

    Raises:
        ValueError: the destination lies in the memory of this process.
        OSError: a worker could not write.
    """
    begun = time.monotonic()
    store, plan = prepared.store, prepared.plan
    if store.location.startswith("memory://"):
        raise ValueError(f"{store.location} lies in this process alone, and Ray's workers are others; give a folder or a bucket")
    records = done_records(store, plan.plan_id)
    inherited = frozenset(records)
    todo = [index for index in range(plan.shards) if index not in records]
    watch = progress or (lambda _: None)
    watch(progress_of(plan, records, inherited, time.monotonic() - begun))
    forget_attempts(store, plan)
    for record in build_all(prepared, todo):
        records[record.index] = record
        watch(progress_of(plan, records, inherited, time.monotonic() - begun))
    if prepared.change == "retry" and not any(record.rows for record in records.values()):
        discard(store, plan.plan_id)  # a generation that says nothing new would be another root each time
        return IngestReport.of(read_manifest(store))
    seconds = time.monotonic() - begun
    facts = {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "seconds": round(seconds, 3),
        "images_per_s": round(sum(plan.chunk_rows(index) for index in todo) / seconds, 3),
    }
    try:
        manifest = commit_plan(
            store,
            plan,
            records,
            prepared.classes,
            facts,
            source=prepared.location,
            change=prepared.change,
            retried=prepared.retried,
            onto=prepared.onto,
        )
    except OSError as error:
        raise (
            error if error.errno is None else OSError(cannot_write(store, error))
        ) from None  # without a number: a sentence already
    return IngestReport.of(manifest)


def build_all(prepared: Prepared, todo: Sequence[int]) -> Iterator[ShardRecord]:
    """Build shards on Ray, and yield their records as they come, in any order.

    Raises:
        OSError: a worker could not write.
    """
    if not todo:
        return
    options = None
    with quiet_ray_data():
        shards = ray.data.from_items([{"shard": i} for i in todo], override_num_blocks=min(len(todo), MAX_TASKS))
        workers, memory = room(ray.nodes())
        workers = min(workers, shards.num_blocks())
        if isinstance(prepared.source, UrlList):
            workers, options = prepared.options.fetch.shared(workers)
        built = shards.map(
            Builder,
            fn_constructor_args=(prepared.store, prepared.plan, prepared.source, options),
            compute=ray.data.ActorPoolStrategy(
                size=workers,
                max_tasks_in_flight_per_actor=QUEUED,
                max_concurrent_calls_per_actor=AT_WORK,
                enable_true_multi_threading=True,
            ),
            num_cpus=1,
            memory=memory,
        )
        for row in built.iter_rows():
            if row["failure"]:
                raise OSError(row["failure"])
            yield ShardRecord.from_json(json.loads(row["record"]))


def room(nodes: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """How many workers fit on the cluster's nodes, and the bytes that each reserves: no more than a node has, or it would wait."""
    have = [(int(node["Resources"].get("CPU", 0)), int(node["Resources"].get("memory", 0))) for node in nodes if node["Alive"]]
    memory = min(WORKER_BYTES, max(nbytes for _, nbytes in have))
    return max(1, sum(min(cpus, nbytes // memory) for cpus, nbytes in have)), memory


def build_row(store: Store, plan: Plan, source: Source, row: dict[str, int], kept: Kept | None = None) -> dict[str, str]:
    """What a worker does with one row. Records travel as JSON: Arrow would unite their `codes` into one struct."""
    try:
        record = build_shard(store, plan, source, row["shard"], kept)
    except ConnectionError as error:
        return {"record": "", "failure": f"{error}; the same command goes on"}
    except OSError as error:  # the user's to mend, so no traceback of Ray's around it
        return {"record": "", "failure": cannot_write(store, error)}
    return {"record": json.dumps(record.to_json()), "failure": ""}


def cannot_write(store: Store, error: OSError) -> str:
    """What a person has to know of a full disk or a missing permission; Arrow's own words for these are long."""
    why = " ".join(str(error).split()) if error.errno is None else os.strerror(error.errno)
    return f"cannot write {error.filename or store.location}: {why}; mend that, and the same command goes on"


class Builder:
    """A worker: an actor, at which the next shard waits already (after a task, the driver took 0.2 s to send another).

    It makes rows in one thread: more were slower (by 10 % with two for each of two workers, by 30 % with one worker for all cores).
    Another thread goes on with the next shard while the last downloads of one are converted, its files are flushed, or travel to a
    bucket.
    For URLs it has its own downloads, and a process beside it that converts: one event loop and its connections serve all shards
    that it builds. Connections per host are the job's: each actor has its share of them, and there are no more actors than
    connections.
    """

    def __init__(self, store: Store, plan: Plan, source: Source, options: FetchOptions | None) -> None:
        self.where = (store, plan, source)
        self.kept = Kept()
        if options is not None:
            self.kept = Kept(Downloads(options), apart := Apart(Conversion.of(store, plan)))
            apart.begin([]).begun.result()
        elif plan.config["resize"] != Resize().config():
            import_module("sightline.models.preprocess")  # takes seconds, which are not to count against the first image's limit

    def __call__(self, row: dict[str, int]) -> dict[str, str]:
        return build_row(*self.where, row, self.kept)


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


def progress_of(plan: Plan, records: Mapping[int, ShardRecord], inherited: Collection[int], seconds: float) -> Progress:
    fresh = [record for index, record in records.items() if index not in inherited]
    return Progress(
        shards=len(records),
        all_shards=plan.shards,
        rows=sum(record.planned for record in records.values()),
        all_rows=plan.rows,
        rejected=sum(record.rejected for record in records.values()),
        fresh_rows=sum(record.planned for record in fresh),
        fresh_bytes=sum(record.bytes for record in fresh),
        seconds=seconds,
    )
