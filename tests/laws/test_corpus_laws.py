"""Laws of the corpus contract, for any rows and any sharding."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.digests import add_fingerprints, fingerprint, row_digest
from sightline.pipelines.corpus.plan import make_plan
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Row, canonical_json, make_row
from sightline.pipelines.corpus.shards import write_shard
from sightline.pipelines.corpus.store import LocalStore

TEXT = st.text(max_size=12)  # any Unicode but surrogates
KEYS = pa.schema([("key", pa.string())])
ROWS = st.builds(
    make_row,
    key=TEXT,
    image=st.binary(max_size=40),
    format=st.sampled_from(["jpeg", "png"]),
    width=st.integers(1, 2**31 - 1),
    height=st.integers(1, 2**31 - 1),
    captions=st.lists(TEXT, max_size=3).map(tuple),
    labels=st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    mask=st.none() | st.binary(max_size=10),
    source=TEXT,
    extra=st.dictionaries(TEXT, st.none() | st.integers() | TEXT, max_size=2).map(canonical_json),
)


def write(folder: Path, rows: Sequence[Row], shard_rows: int) -> Corpus:
    store = LocalStore(folder)
    plan = make_plan([{"key": str(i)} for i in range(len(rows))], KEYS, {}, seed=0, shard_rows=shard_rows)[0]
    records = {i: write_shard(store, plan.plan_id, i, rows[i * shard_rows : (i + 1) * shard_rows]) for i in range(plan.shards)}
    commit_plan(store, plan, records, [], {})
    return Corpus.open(folder)


@settings(max_examples=15, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=12), st.integers(3, 12), st.integers(3, 12), st.randoms())
def test_rows_survive_and_the_fingerprint_ignores_order_and_sharding(
    rows: list[Row], shard_rows: int, other_shard_rows: int, random: object
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = write(Path(folder) / "a", rows, shard_rows)
        assert [corpus.row(i) for i in range(corpus.rows)] == rows
        shuffled = list(rows)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        other = write(Path(folder) / "b", shuffled, other_shard_rows)
        assert other.manifest.fingerprint == corpus.manifest.fingerprint
        if shuffled == rows and shard_rows == other_shard_rows:
            assert other.root == corpus.root


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=20), st.integers(0, 20))
def test_fingerprints_of_parts_add_up(rows: list[bytes], cut: int) -> None:
    assert add_fingerprints([fingerprint(rows[:cut]), fingerprint(rows[cut:])]) == fingerprint(rows)


@given(st.lists(ROWS, min_size=2, max_size=6, unique_by=row_digest), st.integers(0, 5))
def test_a_lost_or_doubled_row_changes_the_fingerprint(rows: list[Row], position: int) -> None:
    digests = [row_digest(row) for row in rows]
    victim = digests[position % len(digests)]
    without = [digest for digest in digests if digest != victim]
    assert len({fingerprint(digests), fingerprint(without), fingerprint([*digests, victim])}) == 3


@given(st.lists(TEXT, min_size=1, max_size=40, unique=True), st.integers(0, 2**63 - 1), st.integers(1, 50), st.randoms())
def test_a_plan_is_a_permutation_that_ignores_the_listing_order(
    keys: list[str], seed: int, shard_rows: int, random: object
) -> None:
    rows = [{"key": key} for key in keys]
    plan, table = make_plan(rows, KEYS, {}, seed=seed, shard_rows=shard_rows)
    planned = table.column("key").to_pylist()
    assert sorted(planned) == sorted(keys)
    assert sum(plan.chunk_rows(i) for i in range(plan.shards)) == plan.rows == len(keys)
    random.shuffle(rows)  # type: ignore[attr-defined]
    again, other = make_plan(rows, KEYS, {}, seed=seed, shard_rows=shard_rows)
    assert again == plan
    assert other.column("key").to_pylist() == planned


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([None, "train", "val", "a,b"]), min_size=1, max_size=20), st.integers(5, 20))
def test_splits_partition_the_rows_that_have_one(splits: list[str | None], shard_rows: int) -> None:
    rows = [
        make_row(
            key=str(i),
            image=b"",
            format="png",
            width=1,
            height=1,
            extra=canonical_json({"split": split} if split else {}),
        )
        for i, split in enumerate(splits)
    ]
    with tempfile.TemporaryDirectory() as folder:
        corpus = write(Path(folder), rows, shard_rows)
        found = np.concatenate([corpus.select(name) for name in corpus.splits] or [np.empty(0, np.int64)])
        assert sorted(found.tolist()) == [i for i, split in enumerate(splits) if split]
        assert all(splits[i] == name for name in corpus.splits for i in corpus.select(name))
