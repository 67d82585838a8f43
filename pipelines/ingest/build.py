"""Building one shard of a plan, in spite of items that kill the process that decodes them.

Whoever runs shards repeats those whose worker died, for ever if need be. So each shard counts its attempts: from the
third on, items are decoded in a process of their own, and one that kills it becomes an error row. A shard that still
does not end fails the run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context, parent_process
from threading import Lock, Thread
from typing import Self

from sightline.fetch.result import Failed
from sightline.pipelines.corpus.forget import Tombstones, read_tombstones
from sightline.pipelines.corpus.plan import Plan, read_chunk
from sightline.pipelines.corpus.schema import FILTER, Rejected, Row
from sightline.pipelines.corpus.shards import Answer, ShardRecord, done_record, write_shard
from sightline.pipelines.corpus.store import STAGING, Store
from sightline.pipelines.ingest.fetch.downloads import Downloads
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.item import Item, Source
from sightline.pipelines.ingest.sources.place import is_far
from sightline.pipelines.ingest.transform import MAX_BYTES, Read, transform
from sightline.pipelines.ingest.watchdog import ITEM_LIMIT_S, watchdog

FAST_ATTEMPTS = 2
MAX_ATTEMPTS = 6
READ, AHEAD_BYTES = 8, 64 * 2**20  # of a source on a network: items that are read at a time, and a bound on their bytes
HANDFUL, HANDFUL_BYTES = 16, 8 * 2**20  # items, and about how many bytes, that go to another process at a time
BEGUN = 2  # handfuls there before the first of them is wanted
Work = tuple[int, Item, Read] | Rejected  # the position in the plan, the item, what reads its bytes


@dataclass
class Kept:
    """What a worker keeps from shard to shard.

    Attributes:
        downloads: for sources whose images are URLs.
        apart: a process that converts while this one downloads.
        turn: whoever has it reads its items; another thread may begin with the next shard as soon as only conversions in another
            process, and the flushing of files, are left to do.
    """

    downloads: Downloads | None = None
    apart: Apart | None = None
    turn: Lock = field(default_factory=Lock)


def build_shard(store: Store, plan: Plan, source: Source, index: int, kept: Kept | None = None) -> ShardRecord:
    """Write one shard of a plan and its done record.

    Raises:
        RuntimeError: the shard was begun too often.
        ConnectionError: the source's storage, or the store, cannot be reached or refuses everything; it may be begun again.
        OSError: it cannot be written.
    """
    kept = kept or Kept()
    with ExitStack() as turn:
        turn.enter_context(kept.turn)
        if (record := done_record(store, plan.plan_id, index)) is not None:
            return record  # a task has several shards, and died after this one
        attempt = count_attempt(store, plan, index)
        if attempt > MAX_ATTEMPTS:
            raise RuntimeError(f"shard {index} was begun {MAX_ATTEMPTS} times and its worker died each time; see Ray's logs")
        answers: list[Answer] = []

        def rows() -> Iterator[Row | Rejected]:
            yield from outcomes(store, plan, source, index, kept, answers, turn.close, fast=attempt <= FAST_ATTEMPTS)
            turn.close()

        return write_shard(store, plan.plan_id, index, rows(), answers)


def outcomes(
    store: Store,
    plan: Plan,
    source: Source,
    index: int,
    kept: Kept,
    answers: list[Answer],
    downloaded: Callable[[], None],
    *,
    fast: bool,
) -> Iterator[Row | Rejected]:
    """What becomes of each item of a shard, in order; what servers said of them is added to `answers`, and `downloaded` called when
    they have nothing more to say.
    """
    first = index * plan.shard_rows
    items = [(first + i, Item.from_row(row)) for i, row in enumerate(read_chunk(store, plan, index))]
    work: Iterable[Work]
    if kept.downloads is not None:
        work = fetched(items, kept.downloads, answers, downloaded)
    elif fast and is_far(source):
        work = read_ahead(items, source.read)
    else:
        work = ((plan_row, item, source.read) for plan_row, item in items)
    how = Conversion.of(store, plan) if kept.apart is None else kept.apart.how
    return isolated(work, how) if not fast else directly(work, how) if kept.apart is None else beside(work, kept.apart)


@dataclass(frozen=True)
class Conversion:
    """`transform` as the plan has it; what was forgotten does not come back. It travels to other processes."""

    max_pixels: int
    resize: Resize
    tombstones: Tombstones

    @classmethod
    def of(cls, store: Store, plan: Plan) -> Self:
        resize = Resize.from_config(plan.config["resize"])
        return cls(plan.config["max_pixels"], resize, read_tombstones(store, plan.config.get("tombstones")))

    def __call__(self, item: Item, plan_row: int, read: Read) -> Row | Rejected:
        outcome = transform(item, plan_row, read, max_pixels=self.max_pixels, resize=self.resize)
        if isinstance(outcome, Row) and (outcome.uid in self.tombstones or outcome.sha256 in self.tombstones):
            return Rejected(plan_row, item.key, item.image, FILTER, "forgotten", "it was forgotten before, and stays out")
        return outcome


def fetched(
    items: Sequence[tuple[int, Item]], downloads: Downloads, said: list[Answer], downloaded: Callable[[], None]
) -> Iterator[Work]:
    """Download each item's image while the ones before it are decoded; what the servers said is added to a list."""
    wanted = [item.image for _, item in items if item.verdict is None]
    answers = downloads.fetch_all(wanted)
    try:
        for plan_row, item in items:
            if item.verdict is not None:
                yield plan_row, item, Given(b"")  # never read
                continue
            answer = next(answers)
            if isinstance(answer, Failed):
                yield Rejected(plan_row, item.key, item.image, "fetch", answer.code, answer.message, answer.status, answer.nbytes)
                continue
            said.append(Answer(item.key, answer.final_url, answer.etag, answer.last_modified, answer.date))
            yield plan_row, item, Given(answer.data)
    finally:
        answers.close()
    downloaded()


def read_ahead(items: Iterable[tuple[int, Item]], read: Read) -> Iterator[Work]:
    """Bytes are read some items ahead, side by side, since a bucket takes its time for each; of two containers one at a time,
    since sources hold the one last opened.
    """
    ahead: deque[tuple[int, Item, Read]] = deque()
    pool = ThreadPoolExecutor(READ)
    try:
        for plan_row, item in items:
            while ahead and (
                len(ahead) == READ or sum(size(known) for _, known, _ in ahead) > AHEAD_BYTES or item.block != ahead[-1][1].block
            ):
                yield ahead.popleft()
            wanted = [item.image, *([item.mask] if item.mask else [])] if item.verdict is None and size(item) <= MAX_BYTES else []
            begun = {reference: pool.submit(read, reference) for reference in wanted}
            ahead.append((plan_row, item, Begun(begun) if begun else read))
        yield from ahead
    finally:
        # Without waiting: the garbage collector may come by here in the very thread that the reads wait for (fsspec's).
        pool.shutdown(wait=False, cancel_futures=True)


def size(item: Item) -> int:
    """Of an item's files, in bytes, as far as it was listed."""
    return (item.nbytes or 0) + (item.mask_nbytes or 0)


@dataclass(frozen=True)
class Begun:
    """Gives bytes that are being read, or raises what reading them raised."""

    begun: Mapping[str, Future[bytes]]

    def __call__(self, reference: str) -> bytes:
        return self.begun[reference].result()


@dataclass(frozen=True)
class Given:
    """Reads bytes that are here already, also in another process."""

    data: bytes

    def __call__(self, reference: str) -> bytes:
        return self.data


def directly(work: Iterable[Work], how: Conversion) -> Iterator[Row | Rejected]:
    """In this process, which ends if an item takes too long."""
    with watchdog() as beat:
        for each in work:
            beat()
            yield each if isinstance(each, Rejected) else how(each[1], each[0], each[2])


def isolated(work: Iterable[Work], how: Conversion) -> Iterator[Row | Rejected]:
    """Like `directly`, but in another process; the item after one that killed it gets a new one."""
    apart = Apart(how)
    try:
        for each in work:
            if isinstance(each, Rejected):
                yield each
                continue
            plan_row, item, _ = each
            try:
                yield from (underway := apart.begin([each], watched=False)).begun.result(timeout=ITEM_LIMIT_S)
            except (BrokenProcessPool, TimeoutError) as error:
                died = isinstance(error, BrokenProcessPool)
                why = "it killed the process that decoded it" if died else f"it took longer than {ITEM_LIMIT_S:.0f} s to decode"
                yield Rejected(plan_row, item.key, item.image, "decode", "crash" if died else "timeout", why)
                apart.renew(underway.pool)
    finally:
        apart.end()


def beside(work: Iterable[Work], apart: Apart) -> Iterator[Row | Rejected]:
    """In another process, some items ahead of what is asked for, while this one downloads.

    In one process the two wait for Python's lock by turns: 2.4 ms an image were measured instead of 1.5 and 0.3. Items travel by
    the handful, since each message costs a third of a millisecond. Where one kills the process, or takes too long, those under way
    are done again, one at a time.
    """
    coming: deque[Underway] = deque()
    for handful in handfuls(work):
        coming.append(apart.begin(handful))
        if len(coming) > BEGUN:
            yield from first_of(coming, apart)
    while coming:
        yield from first_of(coming, apart)


def first_of(coming: deque[Underway], apart: Apart) -> Iterator[Row | Rejected]:
    """What became of the first handful; of all, one at a time, where the process did not get through it (it ends itself if an item
    takes too long).
    """
    first = coming.popleft()
    try:
        yield from first.begun.result()
    except (BrokenProcessPool, CancelledError):  # cancelled: another thread has ended the process
        again = [each for underway in (first, *coming) for each in underway.handful]
        coming.clear()
        apart.renew(first.pool)
        yield from isolated(again, apart.how)


def handfuls(work: Iterable[Work]) -> Iterator[list[Work]]:
    """Some items at a time; fewer where they are large."""
    handful: list[Work] = []
    nbytes = 0
    for each in work:
        handful.append(each)
        nbytes += len(each[2].data) if not isinstance(each, Rejected) and isinstance(each[2], Given) else 0
        if len(handful) == HANDFUL or nbytes > HANDFUL_BYTES:
            yield handful
            handful, nbytes = [], 0
    if handful:
        yield handful


@dataclass(frozen=True)
class Underway:
    """Items, what will have become of them, and the process that converts them."""

    handful: list[Work]
    begun: Future[list[Row | Rejected]]
    pool: ProcessPoolExecutor


class Apart:
    """A process that converts items, in the order in which they were begun; it ends with this one. Threads may share it."""

    def __init__(self, how: Conversion) -> None:
        self.how = how
        self._pool = self._new()
        self._renewing = Lock()

    def begin(self, handful: list[Work], *, watched: bool = True) -> Underway:
        """Its result raises BrokenProcessPool where the process died; of too long an item too, where it is watched."""
        with self._renewing:
            pool = self._pool
            try:
                begun = pool.submit(watched_ones if watched else converted, handful)
            except BrokenProcessPool as error:  # it has died of an earlier one, which nobody has asked for yet
                begun = Future()
                begun.set_exception(error)
        return Underway(handful, begun, pool)

    def renew(self, pool: ProcessPoolExecutor) -> None:
        """Another process in place of a pool's, unless another thread has seen to that."""
        with self._renewing:
            if pool is self._pool:
                self.end()
                self._pool = self._new()

    def end(self) -> None:
        """Stop the process, also in the middle of an item."""
        for process in list((self._pool._processes or {}).values()):  # the executor's own shutdown would wait for the item
            process.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _new(self) -> ProcessPoolExecutor:
        # Spawned, since a fork would copy locks that other threads hold.
        return ProcessPoolExecutor(1, get_context("spawn"), initializer=begin_apart, initargs=(self.how,))


def begin_apart(how: Conversion) -> None:
    global _how
    _how = how
    end_with_parent()
    if how.resize != Resize():
        import_module("sightline.models.preprocess")  # takes seconds, which nobody has to wait for yet


def converted(handful: list[Work]) -> list[Row | Rejected]:
    assert _how is not None
    return [each if isinstance(each, Rejected) else _how(each[1], each[0], each[2]) for each in handful]


def watched_ones(handful: list[Work]) -> list[Row | Rejected]:
    """In this process, which ends if an item takes too long."""
    assert _how is not None
    return list(directly(handful, _how))


_how: Conversion | None = None  # of the process that `Apart` began


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


def count_attempt(store: Store, plan: Plan, index: int) -> int:
    """The number of this attempt at a shard, from 1, written down before the work."""
    attempt = 1
    while store.size(attempt_name(plan, index, attempt)) is not None:
        attempt += 1
    store.mark(attempt_name(plan, index, attempt))  # of deaths of a process: whatever ends the machine is none
    return attempt


def forget_attempts(store: Store, plan: Plan) -> None:
    """A run counts its own attempts: it may have been a person who ended the one before."""
    for name in store.names(f"{STAGING}/{plan.plan_id}"):
        if ".attempt-" in name:
            store.remove(name)
