"""Building one shard of a plan, in spite of items that kill the process that decodes them.

Whoever runs shards repeats those whose worker died, for ever if need be. So each shard counts its attempts: from the
third on, items are decoded in a process of their own, and one that kills it becomes an error row. A shard that still
does not end fails the run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread

from sightline.pipelines.corpus.plan import Plan, read_chunk
from sightline.pipelines.corpus.schema import Rejected, Row
from sightline.pipelines.corpus.shards import ShardRecord, write_shard
from sightline.pipelines.corpus.store import STAGING, LocalStore
from sightline.pipelines.ingest.sources.item import Item, Source
from sightline.pipelines.ingest.transform import transform

FAST_ATTEMPTS = 2
MAX_ATTEMPTS = 6
Numbered = tuple[int, Item]


def build_shard(store: LocalStore, plan: Plan, source: Source, index: int) -> ShardRecord:
    """Write one shard of a plan and its done record.

    Raises:
        RuntimeError: the shard was begun too often.
        OSError: it cannot be written.
    """
    attempt = count_attempt(store, plan, index)
    if attempt > MAX_ATTEMPTS:
        raise RuntimeError(f"shard {index} was begun {MAX_ATTEMPTS} times and its worker died each time; see Ray's logs")
    first = index * plan.shard_rows
    items = ((first + i, Item.from_row(row)) for i, row in enumerate(read_chunk(store, plan, index)))
    outcomes = (directly if attempt <= FAST_ATTEMPTS else isolated)(items, source, plan.config["max_pixels"])
    return write_shard(store, plan.plan_id, index, outcomes)


def directly(items: Iterable[Numbered], source: Source, max_pixels: int) -> Iterator[Row | Rejected]:
    return (transform(item, plan_row, source.read, max_pixels=max_pixels) for plan_row, item in items)


def isolated(items: Iterable[Numbered], source: Source, max_pixels: int) -> Iterator[Row | Rejected]:
    """Like `directly`, but in another process; the item after one that killed it gets a new one."""
    pool = new_process()
    try:
        for plan_row, item in items:
            try:
                yield pool.submit(transform, item, plan_row, source.read, max_pixels=max_pixels).result()
            except BrokenProcessPool:
                yield Rejected(plan_row, item.key, item.image, "decode", "crash", "it killed the process that decoded it")
                pool.shutdown()
                pool = new_process()
    finally:
        pool.shutdown()


def new_process() -> ProcessPoolExecutor:
    """A pool of one; spawned, since a fork would copy locks that other threads hold."""
    return ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn"), initializer=end_with_parent)


def end_with_parent() -> None:
    """Leave no process behind when the worker that began it is killed."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()


def attempt_name(plan: Plan, index: int, attempt: int) -> str:
    return f"{STAGING}/{plan.plan_id}/shard-{index:06d}.attempt-{attempt}"


def count_attempt(store: LocalStore, plan: Plan, index: int) -> int:
    """The number of this attempt at a shard, from 1, written down before the work."""
    attempt = 1
    while store.size(attempt_name(plan, index, attempt)) is not None:
        attempt += 1
    store.replace(attempt_name(plan, index, attempt), b"")
    return attempt


def forget_attempts(store: LocalStore, plan: Plan) -> None:
    """A run counts its own attempts: it may have been a person who ended the one before."""
    for name in store.names(f"{STAGING}/{plan.plan_id}"):
        if ".attempt-" in name:
            store.remove(name)
