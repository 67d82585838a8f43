"""Forgetting rewrites what it must and nothing else; `gc` removes what nobody names, and after a purge nothing is left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightline.pipelines.corpus.columns import Rule, commit_column, parts, read_column, write_column, write_part
from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.digests import fingerprint, fingerprint_hex, page_digest, root_digest, row_digest, shard_content
from sightline.pipelines.corpus.forget import forget, read_tombstones
from sightline.pipelines.corpus.gc import collect
from sightline.pipelines.corpus.manifest import PAGE_SHARDS, read_manifest, read_shards, revoked_name
from sightline.pipelines.corpus.plan import make_plan, save_plan
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Rejected, Row
from sightline.pipelines.corpus.shards import done_records, write_shard
from sightline.pipelines.corpus.store import Store, open_store
from sightline.pipelines.corpus.verify import verify
from tests.pipelines.test_corpus import KEYS, example, rejection

OUTCOMES: list[Row | Rejected] = [rejection(i) if i in (3, 97) else example(i) for i in range(100)]
INPUTS = pa.schema([*KEYS, pa.field("captions", pa.list_(pa.string()), nullable=False), pa.field("mask", pa.string())])


def write(location: str | Path, outcomes: list[Row | Rejected]) -> Store:
    """A corpus of shards of 20 inputs."""
    store = open_store(location)
    keys = [{"key": outcome.key, "captions": [f"of {outcome.key}"], "mask": None} for outcome in outcomes]
    plan, table = make_plan(keys, INPUTS, {"test": 1}, seed=0, shard_rows=20)
    in_plan_order = {outcome.key: outcome for outcome in outcomes}
    outcomes = [in_plan_order[key] for key in table["key"].to_pylist()]
    save_plan(store, plan, table)
    records = {i: write_shard(store, plan.plan_id, i, outcomes[20 * i : 20 * i + 20]) for i in range(plan.shards)}
    commit_plan(store, plan, records, [], {"source": "somewhere"})
    return store


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the cache of shards lies below it
    url = f"memory://forget-{uuid4().hex}/corpus"
    yield write(tmp_path / "corpus" if request.param == "folder" else url, OUTCOMES)
    if request.param == "memory":
        fsspec.filesystem("memory").rm(url, recursive=True)


def rows_of(store: Store) -> list[Row]:
    corpus = Corpus.open(store.location)
    rows = [corpus.row(i) for i in range(len(corpus))]
    return [Row(**{**vars(row), "image": bytes(row.image), "mask": row.mask and bytes(row.mask)}) for row in rows]


def plain_root(store: Store) -> tuple[str, str]:
    """Root and fingerprint by a loop over the rows of each shard."""
    rows, contents, prints = iter(rows_of(store)), [], 0
    for shard in read_shards(store, read_manifest(store).pages):
        digests = [row_digest(next(rows)) for _ in range(shard.rows)]
        contents.append(shard_content(digests))
        prints += fingerprint(digests)
    assert next(rows, None) is None
    assert len(contents) <= PAGE_SHARDS
    return root_digest([page_digest(contents)]).hex(), fingerprint_hex(prints % 2**512)


def test_the_remaining_rows_keep_their_order_and_give_the_root(store: Store) -> None:
    before = rows_of(store)
    gone = {before[5].uid, before[6].uid, before[60].sha256}
    done = forget(store, [identity.hex() for identity in gone])
    expected = [row for row in before if not {row.uid, row.sha256} & gone]
    assert rows_of(store) == expected
    assert (done.rows, done.shards) == (3, 2)
    manifest = read_manifest(store)
    assert (manifest.change, manifest.generation, manifest.rows, manifest.forgotten) == ("forget", 2, 95, 3)
    assert (manifest.seen, manifest.rejected, manifest.codes) == (100, 2, {"decode/truncated": 2})
    assert (manifest.root, manifest.fingerprint) == plain_root(store)
    assert verify(store).damages == ()


def test_shards_without_a_forgotten_row_are_not_touched(tmp_path: Path) -> None:
    store = write(tmp_path, OUTCOMES)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.*") if path.name != "manifest.json"}
    old = read_shards(store, read_manifest(store).pages)
    forget(store, [rows_of(store)[0].uid.hex()])
    assert all((path.stat().st_ino, path.stat().st_mtime_ns) == state for path, state in before.items())
    assert [shard.file for shard in read_shards(store, read_manifest(store).pages)][1:] == [shard.file for shard in old][1:]


def test_equal_pairs_go_together(tmp_path: Path) -> None:
    twin = Row(**{**vars(example(1)), "key": "twin"})
    store = write(tmp_path, [*OUTCOMES, twin])
    assert forget(store, [twin.uid.hex()]).rows == 2
    assert not {"0001", "twin"} & {row.key for row in rows_of(store)}


def test_a_whole_shard_may_go(store: Store) -> None:
    shard = read_shards(store, read_manifest(store).pages)[1]
    first = read_shards(store, read_manifest(store).pages)[0].rows
    forget(store, [row.uid.hex() for row in rows_of(store)[first : first + shard.rows]])
    assert read_manifest(store).rows == 98 - shard.rows
    assert verify(store).damages == ()


def test_the_same_command_again_finds_it_done(store: Store) -> None:
    uid = rows_of(store)[7].uid.hex()
    first, second = forget(store, [uid]), forget(store, [uid])
    assert (second.rows, second.manifest) == (0, first.manifest)


@pytest.mark.parametrize(
    ("identity", "message"),
    [("0" * 32, "no row of .* has the uid or sha256 0{32}"), ("xyz", "neither a uid"), ("00", "neither a uid")],
)
def test_an_unknown_row_is_refused_before_anything_is_written(tmp_path: Path, identity: str, message: str) -> None:
    store = write(tmp_path, OUTCOMES)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        forget(store, [rows_of(store)[0].uid.hex(), identity])
    assert sorted(path for path in tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match="which rows"):
        forget(store, [])


def test_a_damaged_shard_does_not_get_a_valid_digest(tmp_path: Path) -> None:
    store = write(tmp_path, OUTCOMES)
    uid = rows_of(store)[0].uid.hex()
    path = tmp_path / read_shards(store, read_manifest(store).pages)[0].file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is damaged"):
        forget(store, [uid])


def test_a_damaged_table_of_errors_is_not_copied_either(tmp_path: Path) -> None:
    store = write(tmp_path, OUTCOMES)
    shard = next(shard for shard in read_shards(store, read_manifest(store).pages) if shard.errors is not None)
    data = bytearray(store.read(str(shard.errors)))
    data[40] ^= 1
    (tmp_path / str(shard.errors)).write_bytes(data)
    uids = [row.uid.hex() for row in rows_of(store)]
    with pytest.raises(ValueError, match=r"errors/.* is damaged and cannot be written again"):
        forget(store, uids)


def test_tombstones_know_what_was_forgotten_and_name_nothing(store: Store) -> None:
    one, two, other = rows_of(store)[0], rows_of(store)[50], rows_of(store)[51]
    forget(store, [one.uid.hex()])
    forget(store, [two.sha256.hex()])
    name = read_manifest(store).tombstones
    assert name is not None
    tombstones = read_tombstones(store, name)
    assert all(identity in tombstones for row in (one, two) for identity in (row.uid, row.sha256))
    assert other.uid not in tombstones and other.sha256 not in tombstones
    assert one.uid.hex() not in store.read(name).decode()
    assert not read_tombstones(store, None)


def test_a_score_follows_its_rows_and_a_filter_is_told_to_be_made_again(store: Store) -> None:
    corpus = Corpus.open(store.location)
    rule = Rule("score", {"model": "m"}, pa.float32())
    for part in parts(corpus, "clip", rule):
        values = pa.array([None if i == 0 else float(i) for i in part.rows], pa.float32())
        write_part(store, part, values, {"scored": len(values) - values.null_count, "null": values.null_count})
    commit_column(corpus, "clip", rule)
    write_column(corpus, "big", Rule("filter", {"min": 3}, pa.bool_()), pa.array([True] * corpus.rows))
    done = forget(store, [corpus.row(i).uid.hex() for i in (4, 70)])
    assert done.columns_to_redo == ("big",)
    after = Corpus.open(store.location)
    assert read_column(after, "clip").to_pylist() == [None, *(float(i) for i in range(1, 98) if i not in (4, 70))]
    with pytest.raises(ValueError, match="make it again"):
        read_column(after, "big")
    collect(store, purge=True)
    assert read_column(Corpus.open(store.location), "clip").to_pylist()[4] == 5.0
    assert verify(store).damages == ()


# --- gc


def everything(store: Store) -> dict[str, bytes]:
    """All files of a corpus below the folders that it writes."""
    found = {}

    def walk(folder: str) -> None:
        for name in store.names(folder):
            found[name] = store.read(name)
        for inner in store.folders(folder):
            walk(f"{folder}/{inner}")

    for top in store.entries():
        if top != "manifest.json":
            walk(top)
    return found


def test_without_purge_every_root_stays(store: Store) -> None:
    root = read_manifest(store).root
    forget(store, [rows_of(store)[0].uid.hex()])
    assert collect(store, older_than_s=0).files == 0
    assert Corpus.open(store.location, root=root).rows == 98


def test_after_a_purge_the_forgotten_are_nowhere_and_the_old_root_says_so(store: Store) -> None:
    root, row = read_manifest(store).root, rows_of(store)[10]
    forget(store, [row.uid.hex()])
    kept = rows_of(store)
    assert any(row.uid in data for data in everything(store).values())
    planned = collect(store, purge=True, dry_run=True)
    assert any(row.uid in data for data in everything(store).values())
    done = collect(store, purge=True)
    assert (done.files, done.bytes, done.revoked, done.redacted) == (planned.files, planned.bytes, (1,), 1)
    assert done.files >= 3 and done.bytes > 0
    files = everything(store)
    assert not any(row.uid in data or f"of {row.key}".encode() in data for data in files.values())
    assert rows_of(store) == kept
    assert verify(store).damages == ()
    with pytest.raises(ValueError, match="was revoked"):
        Corpus.open(store.location, root=root)
    plan = read_manifest(store).plan_ids[0]
    with store.open(f"plans/{plan}/input.parquet") as file:
        inputs = {item["key"]: item["captions"] for item in pq.read_table(file).to_pylist()}
    assert inputs.pop(row.key) == [] and all(inputs.values())
    again = collect(store, purge=True)
    assert (again.files, again.revoked, again.redacted) == (0, (), 0)


@pytest.mark.parametrize("removals", range(6))
def test_a_purge_that_was_killed_is_ended_by_the_next(tmp_path: Path, removals: int) -> None:
    store = write(tmp_path, OUTCOMES)
    gone = [rows_of(store)[0], rows_of(store)[90]]
    for row in gone:
        forget(store, [row.uid.hex()])
    left = [removals]

    def remove(self: object, name: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        (tmp_path / name).unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            collect(store, purge=True)
    collect(store, purge=True)
    files = everything(store)
    assert not any(row.uid in data for row in gone for data in files.values())
    named = {name for shard in read_shards(store, read_manifest(store).pages) for name, _ in shard.files()}
    assert named == {name for name in files if name.partition("/")[0] in ("data", "meta", "errors")}
    assert len([name for name in files if name.startswith("manifests/pages/")]) == 1
    assert verify(store).damages == ()


def test_only_old_files_that_nobody_names_go(tmp_path: Path) -> None:
    store = write(tmp_path, OUTCOMES)
    plan = read_manifest(store).plan_ids[0]
    strays = [
        f"data/{plan}/shard-000000-dead.arrow",
        "manifests/pages/dead.json",
        "_staging/temporary/dead",
        "tombstones/dead.json",
    ]
    for name in strays:
        store.replace(name, b"1234")
    assert collect(store).files == 0  # a writer may be about to name them
    for name in strays:
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    done = collect(store)
    assert (done.files, done.bytes) == (4, 16)
    assert not any((tmp_path / name).exists() for name in strays)
    assert verify(store).damages == ()


def test_an_unfinished_ingest_stays_and_the_staging_of_a_finished_one_goes(tmp_path: Path) -> None:
    store = write(tmp_path, OUTCOMES)
    finished = read_manifest(store).plan_ids[0]
    plan, table = make_plan([{"key": "new", "captions": [], "mask": None}], INPUTS, {"test": 2}, seed=0, shard_rows=20)
    save_plan(store, plan, table)
    write_shard(store, plan.plan_id, 0, [example(200)])
    store.replace(f"_staging/{finished}/shard-000000.json", b"{}")
    before = set(everything(store))
    done = collect(store, older_than_s=0)
    assert (done.unfinished, done.abandoned) == ((plan.plan_id,), ())
    assert before - set(everything(store)) == {f"_staging/{finished}/shard-000000.json"}


def test_a_purge_removes_a_plan_that_was_abandoned_and_leaves_one_that_runs(tmp_path: Path) -> None:
    store = write(tmp_path, OUTCOMES)
    before = set(everything(store))
    plan, table = make_plan([{"key": "new", "captions": [], "mask": None}], INPUTS, {"test": 2}, seed=0, shard_rows=20)
    save_plan(store, plan, table)
    write_shard(store, plan.plan_id, 0, [example(200)])
    begun = set(everything(store)) - before
    for name in sorted(begun)[1:]:  # one of its files was written just now
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    done = collect(store, purge=True)
    assert (done.unfinished, done.abandoned, set(everything(store))) == ((plan.plan_id,), (), before | begun)
    os.utime(tmp_path / min(begun), (time.time() - 90_000,) * 2)
    assert collect(store, purge=True, dry_run=True).abandoned == (plan.plan_id,)
    done = collect(store, purge=True)
    assert (done.unfinished, done.abandoned, set(everything(store))) == ((), (plan.plan_id,), before)
    again = collect(store, purge=True, older_than_s=0)
    assert (again.unfinished, again.abandoned, again.files) == ((), (), 0)
    assert verify(store).damages == ()


@pytest.mark.parametrize("removals", range(4))
def test_a_killed_purge_of_an_abandoned_plan_is_ended_by_the_next_or_by_its_ingest(tmp_path: Path, removals: int) -> None:
    store = write(tmp_path, OUTCOMES)
    before = set(everything(store))
    plan, table = make_plan([{"key": "new", "captions": [], "mask": None}], INPUTS, {"test": 2}, seed=0, shard_rows=20)
    save_plan(store, plan, table)
    write_shard(store, plan.plan_id, 0, [example(200)])
    left = [removals]

    def remove(self: object, name: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        (tmp_path / name).unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(store), "remove", remove)
        with pytest.raises(KeyboardInterrupt):
            collect(store, purge=True, older_than_s=0)
    # Whatever is left, no shard of it counts as done unless all of it is there.
    assert not done_records(store, plan.plan_id) or not removals
    assert collect(store, purge=True, older_than_s=0).abandoned == (plan.plan_id,)
    assert set(everything(store)) == before


def test_a_damaged_history_stops_the_collector(tmp_path: Path) -> None:
    store = write(tmp_path, OUTCOMES)
    forget(store, [rows_of(store)[0].uid.hex()])
    (tmp_path / "manifests" / "gen-000001.json").write_text("{}")
    with pytest.raises(ValueError, match="corpus verify"):
        collect(store, purge=True)
    assert store.size(revoked_name(1)) is None
