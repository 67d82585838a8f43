"""Columns beside the shards, and the views that filters make: against plain lists, over appends and interruptions."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sightline.pipelines.corpus import columns
from sightline.pipelines.corpus.columns import Rule, commit_column, missing, parts, read_column, read_mask, write_column, write_part
from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.plan import make_plan
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Row, make_row
from sightline.pipelines.corpus.shards import write_shard
from sightline.pipelines.corpus.store import LocalStore
from sightline.pipelines.corpus.view import select_view

KEYS = pa.schema([("key", pa.string())])
LONG = Rule("length", {}, pa.float32())
EVEN = Rule("filter", {"even": True}, pa.bool_())


def corpus_of(folder: Path, rows: Sequence[Row], shard_rows: int = 7, change: str = "ingest") -> Corpus:
    """A corpus of given rows in their order; or another generation of one, with the rows at its end."""
    store = LocalStore(folder)
    plan = make_plan([{"key": row.key} for row in rows], KEYS, {}, seed=0, shard_rows=shard_rows)[0]
    chunks = [rows[start : start + shard_rows] for start in range(0, len(rows), shard_rows)]
    records = {index: write_shard(store, plan.plan_id, index, chunk) for index, chunk in enumerate(chunks)}
    commit_plan(store, plan, records, [], {}, change=change, onto=None if change == "ingest" else 1)
    return Corpus.open(folder)


def plain_rows(first: int, last: int) -> list[Row]:
    return [
        make_row(
            key=f"{i:04d}",
            image=b"%d" % i,
            format="jpeg",
            width=1,
            height=1,
            extra='{"split":"%s"}' % ("val" if i % 5 == 0 else "train"),
        )
        for i in range(first, last)
    ]


def mask_column(corpus: Corpus, name: str, divisor: int) -> list[bool]:
    values = [row % divisor == 0 for row in range(corpus.rows)]
    write_column(corpus, name, Rule("filter", {"divisor": divisor}, pa.bool_()), pa.array(values))
    return values


def test_values_come_back_in_the_order_of_the_rows(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, plain_rows(0, 50))
    for name, kind, values in (
        ("a", pa.float32(), [None if i % 3 == 0 else i / 2 for i in range(50)]),
        ("b-2", pa.uint64(), [2**64 - 1 - i for i in range(50)]),
        ("c_3", pa.string(), [None if i % 4 else f"text {i}" for i in range(50)]),
        ("d", pa.bool_(), [i % 7 == 1 for i in range(50)]),
    ):
        info = write_column(corpus, name, Rule("test", {"n": 1}, kind), pa.array(values, kind))
        assert read_column(corpus, name).to_pylist() == values
        assert (info.type, info.rows, info.root) == (str(kind), 50, corpus.root)
    assert [info.name for info in columns.columns(corpus)] == ["a", "b-2", "c_3", "d"]


def test_equal_rules_on_equal_rows_give_equal_names(tmp_path: Path) -> None:
    rows = plain_rows(0, 30)
    first, second = (corpus_of(tmp_path / name, rows) for name in ("a", "b"))
    assert [part.file for part in parts(first, "x", LONG)] == [part.file for part in parts(second, "x", LONG)]
    assert LONG.key("1") == LONG.key("2") and LONG.key("1") != EVEN.key("1")
    whole = Rule("length", {}, pa.float32(), per_row=False)
    assert len({whole.key("1"), whole.key("2"), LONG.key("1")}) == 3


def test_a_column_without_its_description_is_not_seen(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, plain_rows(0, 30))
    wanted = parts(corpus, "x", EVEN)
    for part in wanted[:-1]:
        write_part(LocalStore(tmp_path), part, pa.array([True] * len(part.rows)))
    assert columns.columns(corpus) == []
    with pytest.raises(ValueError, match="no column 'x'"):
        read_column(corpus, "x")
    assert missing(LocalStore(tmp_path), wanted) == wanted[-1:]  # whoever goes on has one to do
    with pytest.raises(AssertionError, match="never written"):
        commit_column(corpus, "x", EVEN)


def test_a_rule_that_is_being_replaced_leaves_the_old_one_whole(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, plain_rows(0, 30))
    before = mask_column(corpus, "x", 2)
    part = parts(corpus, "x", Rule("filter", {"divisor": 3}, pa.bool_()))[0]
    write_part(LocalStore(tmp_path), part, pa.array([True] * len(part.rows)))  # and then it is killed
    assert read_mask(corpus, "x").tolist() == before
    assert mask_column(corpus, "x", 3) == read_mask(corpus, "x").tolist()


def test_after_an_append_only_the_new_shards_are_missing(tmp_path: Path) -> None:
    old = corpus_of(tmp_path, plain_rows(0, 21))
    values = pa.array([float(i) for i in range(21)], pa.float32())
    write_column(old, "x", LONG, values)
    whole = Rule("length", {}, pa.float32(), per_row=False)
    write_column(old, "y", whole, values)
    new = corpus_of(tmp_path, plain_rows(21, 40), change="append")
    assert new.rows == 40
    assert [part.start for part in missing(LocalStore(tmp_path), parts(new, "x", LONG))] == [21, 28, 35]
    with pytest.raises(ValueError, match=r"lacks 3 of 6 shards.*make it again"):
        read_column(new, "x")
    with pytest.raises(ValueError, match=r"other rows; make it again"):
        read_column(new, "y")
    for name, rule in (("x", LONG), ("y", whole)):
        write_column(new, name, rule, pa.array([float(i) for i in range(40)], pa.float32()))
        for corpus in (new, old):  # a run that goes on with the older generation still has its column
            assert read_column(corpus, name).to_pylist() == [float(i) for i in range(corpus.rows)]


def test_a_column_of_another_corpus_is_refused(tmp_path: Path) -> None:
    corpus, other = corpus_of(tmp_path / "a", plain_rows(0, 21)), corpus_of(tmp_path / "b", plain_rows(1, 22))
    mask_column(corpus, "x", 2)
    (tmp_path / "a" / "columns").rename(tmp_path / "b" / "columns")
    with pytest.raises(ValueError, match=r"'x' was made for other rows; make it again"):
        read_column(other, "x")
    for part, source in zip(parts(other, "x", EVEN), parts(corpus, "x", EVEN), strict=True):  # even under the right names
        write_part(LocalStore(tmp_path / "b"), source, pa.array([True] * len(source.rows)))
        (tmp_path / "b" / part.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "b" / source.file).rename(tmp_path / "b" / part.file)
    commit_column(other, "x", EVEN)
    with pytest.raises(ValueError, match=r"'x' was made for other rows; make it again"):
        read_column(other, "x")


def test_names_and_lengths_are_checked(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, plain_rows(0, 5))
    for name in ("", "Big", "a/b", "..", "a b"):
        with pytest.raises(ValueError, match="no name for a column"):
            write_column(corpus, name, EVEN, pa.array([True] * 5))
    with pytest.raises(ValueError, match="4 values for 5 rows"):
        write_column(corpus, "x", EVEN, pa.array([True] * 4))
    write_column(corpus, "x", LONG, pa.array([0.5] * 5))
    with pytest.raises(ValueError, match="is no filter"):
        read_mask(corpus, "x")


def test_a_view_is_the_and_of_its_filters_in_a_split(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, plain_rows(0, 60))
    two, three = mask_column(corpus, "two", 2), mask_column(corpus, "three", 3)
    view = select_view(corpus, ["two", "three"], "train")
    train = corpus.select("train").tolist()
    assert view.rows.tolist() == [row for row in train if two[row] and three[row]]
    assert view.rows.dtype == np.int64
    alone = [sum(not mask[row] for row in train) for mask in (two, three)]
    assert [cost.alone for cost in view.costs] == alone
    assert [cost.after for cost in view.costs] == [alone[0], sum(two[row] and not three[row] for row in train)]
    assert [cost.left for cost in view.costs] == [len(train) - alone[0], len(view.rows)]
    assert select_view(corpus, ["two"]).rows.tolist() == list(range(0, 60, 2))
    assert select_view(corpus, []).rows.tolist() == list(range(60))
    with pytest.raises(ValueError, match="it has three, two"):
        select_view(corpus, ["four"])


def test_a_views_digest_follows_its_meaning_and_not_its_spelling(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, plain_rows(0, 60))
    mask_column(corpus, "two", 2)
    mask_column(corpus, "three", 3)
    digest = select_view(corpus, ["two", "three"]).digest
    assert select_view(corpus, ["three", "two", "two"]).digest == digest
    assert select_view(pickle.loads(pickle.dumps(corpus)), ["two", "three"]).digest == digest
    others = {select_view(corpus, ["two"]).digest, select_view(corpus, ["two", "three"], "train").digest}
    mask_column(corpus, "three", 5)
    assert len(others | {digest, select_view(corpus, ["two", "three"]).digest}) == 4
    described = json.loads((tmp_path / "columns" / "three" / "column.json").read_text())
    assert (described["kind"], described["rule"]) == ("filter", {"divisor": 5})
