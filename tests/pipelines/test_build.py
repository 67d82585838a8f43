"""What a worker reads ahead, and what it does when the machine is short of something."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from errno import EMFILE, ENOSPC
from pathlib import Path
from threading import Barrier, Lock
from typing import Any

import pytest

from sightline.pipelines.corpus.forget import Tombstones
from sightline.pipelines.corpus.plan import read_chunk
from sightline.pipelines.corpus.schema import Rejected, Row
from sightline.pipelines.corpus.shards import done_records
from sightline.pipelines.ingest import build
from sightline.pipelines.ingest.prepare import Prepared, prepare
from sightline.pipelines.ingest.report import IngestOptions
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.item import Item, Verdict
from sightline.pipelines.ingest.transform import transform
from tests.corpora import digits_source

KEEP = build.Conversion(64_000_000, Resize(), Tombstones())


@dataclass
class Most:
    """Counts how many are within at a time, as a context manager."""

    most: int = 0
    now: int = 0
    lock: Any = field(default_factory=Lock)

    def __enter__(self) -> None:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.now -= 1


@dataclass(frozen=True)
class SourceOf:
    """As much of a source as a worker uses."""

    read: Callable[[str], bytes]


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return prepare(digits_source(tmp_path / "source", 40, 5, 10), tmp_path / "corpus", IngestOptions())


def items_of(prepared: Prepared) -> list[tuple[int, Item]]:
    return [(i, Item.from_row(row)) for i, row in enumerate(read_chunk(prepared.store, prepared.plan, 0))]


def test_what_is_read_ahead_is_what_a_plain_loop_reads_in_its_order(prepared: Prepared) -> None:
    def read(reference: str) -> bytes:
        time.sleep(len(reference) % 3 / 1_000)
        if reference.endswith("7.png"):
            raise FileNotFoundError(2, "gone", reference)
        return prepared.source.read(reference)

    items = items_of(prepared)
    items[3] = (3, replace(items[3][1], verdict=Verdict("list", "odd", "never read")))
    expected = [transform(item, plan_row, read) for plan_row, item in items]
    assert {type(outcome) for outcome in expected} == {Row, Rejected}
    assert list(build.directly(build.read_ahead(items, read), KEEP)) == expected


def test_several_files_are_read_at_a_time(prepared: Prepared) -> None:
    together = Barrier(build.READ)

    def read(reference: str) -> bytes:
        together.wait(timeout=10)  # breaks, and so fails, unless as many as that read at a time
        return prepared.source.read(reference)

    items = items_of(prepared)[: 3 * build.READ]
    assert all(isinstance(outcome, Row) for outcome in build.directly(build.read_ahead(items, read), KEEP))


@pytest.mark.parametrize("why", ["large files", "containers of their own"])
def test_large_files_and_containers_are_read_one_by_one(prepared: Prepared, why: str) -> None:
    reading = Most()

    def read(reference: str) -> bytes:
        with reading:
            time.sleep(0.002)
            return b""

    def alone(item: Item) -> Item:
        return replace(item, nbytes=build.AHEAD_BYTES + 1) if why == "large files" else replace(item, block=item.key)

    items = [(i, alone(replace(item, mask=None))) for i, item in items_of(prepared)]
    assert len(list(build.directly(build.read_ahead(items, read), KEEP))) == len(items) == 55
    assert reading.most == 1


@pytest.mark.parametrize("number", [ENOSPC, EMFILE])
def test_what_this_machine_lacks_stops_the_shard_and_is_no_error_row(prepared: Prepared, number: int) -> None:
    def read(reference: str) -> bytes:
        raise OSError(number, os.strerror(number), "/tmp/unpacked")

    with pytest.raises(ConnectionError, match=f"this machine could not read .*: {os.strerror(number)}"):
        build.build_shard(prepared.store, prepared.plan, SourceOf(read), 0)  # type: ignore[arg-type]
    assert not done_records(prepared.store, prepared.plan.plan_id)


@dataclass(frozen=True)
class Kills:
    """An image that ends the process which decodes it."""

    def __call__(self, reference: str) -> bytes:
        os._exit(1)


def test_what_another_process_converts_is_what_a_plain_loop_does_and_an_item_that_kills_it_fails_alone(prepared: Prepared) -> None:
    items = [(i, replace(item, mask=None, mask_nbytes=None)) for i, item in items_of(prepared)]
    given = [(i, item, build.Given(prepared.source.read(item.image))) for i, item in items]
    expected: list[Row | Rejected] = [transform(item, plan_row, read) for plan_row, item, read in given]
    work: list[build.Work] = [*given]
    work[3] = expected[3] = Rejected(given[3][0], given[3][1].key, "", "fetch", "timeout", "not done within 5 s")
    apart = build.Apart(KEEP)
    try:
        assert list(build.beside(work, apart)) == expected
        plan_row, item, _ = given[10]
        work[10] = (plan_row, item, Kills())
        why = "it killed the process that decoded it"
        expected[10] = Rejected(plan_row, item.key, item.image, "decode", "crash", why)
        assert list(build.beside(work, apart)) == expected
        assert list(build.beside(work[:10], apart)) == expected[:10]  # by the process that took its place
    finally:
        apart.end()


def test_two_shards_share_the_process_and_one_that_kills_it_costs_the_other_no_row(prepared: Prepared) -> None:
    items = [(i, replace(item, mask=None, mask_nbytes=None)) for i, item in items_of(prepared)]
    given: list[build.Work] = [(i, item, build.Given(prepared.source.read(item.image))) for i, item in items]
    kills: list[build.Work] = [(i, item, Kills()) for i, item in items[:3]]
    apart = build.Apart(KEEP)
    try:
        expected = list(build.beside(given, apart))
        for _ in range(3):
            with ThreadPoolExecutor(2) as threads:
                some = threads.submit(lambda: list(build.beside(given, apart)))
                others = threads.submit(lambda: list(build.beside([*kills, *given], apart)))
                assert some.result(60) == expected
                *dead, fourth, fifth = others.result(60)[:5]
            assert [one.code for one in dead if isinstance(one, Rejected)] == ["crash"] * 3
            assert [fourth, fifth] == expected[:2]
    finally:
        apart.end()
