"""`why` tells every decision on a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import fsspec
import pyarrow as pa
import pytest

from sightline.cli.corpus.why import told
from sightline.pipelines.corpus.columns import Rule, write_column
from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.forget import forget
from sightline.pipelines.corpus.plan import make_plan, save_plan
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.shards import Answer, write_shard
from sightline.pipelines.corpus.store import Store, open_store
from sightline.pipelines.corpus.why import why
from tests.pipelines.test_corpus import KEYS, example, rejection
from tests.pipelines.test_corpus_forget import rows_of, write


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """50 inputs in 3 shards: 12 was filtered, 13 rejected, and 45 has the content of 44."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    url = f"memory://why-{uuid4().hex}/corpus"
    outcomes = {i: example(i) for i in range(50)} | {45: replace(example(44), key="0045")}
    rejected = {12: rejection(12, "filter", "small"), 13: rejection(13)}
    yield write(tmp_path / "corpus" if request.param == "folder" else url, list((outcomes | rejected).values()))
    if request.param == "memory":
        fsspec.filesystem("memory").rm(url, recursive=True)


def test_a_kept_row_tells_where_it_lies_and_what_is_known_of_it(store: Store) -> None:
    row = example(7)
    corpus = Corpus.open(store.location)
    write_column(corpus, "big", Rule("filter", {"min": 1}, pa.bool_()), pa.array([i % 2 == 0 for i in range(corpus.rows)]))
    for asked in ("0007", row.uid.hex(), row.uid.hex()[:9], row.sha256.hex()[:8].upper()):
        (account,) = why(store.location, asked)
        assert (account.key, account.forgotten) == ("0007", False)
        (decision,) = account.decisions
        assert (decision.verdict, decision.generation, decision.change) == ("kept", 1, "ingest")
        (place,) = account.places
        assert corpus.row(place.row).uid == row.uid
        assert place.facts["sha256"] == row.sha256.hex() and place.facts["source"] == row.source
        assert place.columns == {"big": place.row % 2 == 0}
        assert f"/shard-{decision.chunk:06d}-" in place.file


@pytest.mark.parametrize(("key", "verdict", "code"), [("0012", "filtered", "small"), ("0013", "rejected", "truncated")])
def test_what_was_left_out_tells_the_reason(store: Store, key: str, verdict: str, code: str) -> None:
    (account,) = why(store.location, key)
    assert [(one.verdict, one.reason["code"], one.reason["message"]) for one in account.decisions] == [
        (verdict, code, "the reason")
    ]
    assert account.places == ()


def test_what_a_server_said_is_told_with_the_row_that_it_sent(tmp_path: Path) -> None:
    store = open_store(tmp_path / "corpus")
    plan, table = make_plan([{"key": row.key} for row in (example(1), example(2))], KEYS, {}, seed=0, shard_rows=20)
    save_plan(store, plan, table)
    answers = [Answer("0001", "https://example.org/1", '"e1"', None, "Mon, 23 Nov 2026 00:00:00 GMT")]
    rows = [example(int(key)) for key in table["key"].to_pylist()]
    commit_plan(store, plan, {0: write_shard(store, plan.plan_id, 0, rows, answers)}, [], {})
    (downloaded,), (copied,) = why(store.location, "0001"), why(store.location, "0002")
    assert [place.answer for place in downloaded.places] == answers
    assert [place.answer for place in copied.places] == [None]
    cells = [*told(downloaded)[0].columns[0].cells], [str(cell) for cell in told(downloaded)[0].columns[1].cells]
    shown = dict(zip(*cells, strict=True))
    assert (shown["server: url"], shown["server: etag"]) == ("https://example.org/1", '"e1"')
    assert "server: last-modified" not in shown


def test_equal_pairs_are_accounts_of_their_own(store: Store) -> None:
    assert [account.key for account in why(store.location, example(44).uid.hex())] == ["0044", "0045"]


def test_a_retry_is_a_second_decision(store: Store) -> None:
    plan, table = make_plan([{"key": "0013"}], KEYS, {"retry": 1}, seed=0, shard_rows=20)
    save_plan(store, plan, table)
    records = {0: write_shard(store, plan.plan_id, 0, [example(13)])}
    commit_plan(store, plan, records, [], {}, change="retry", onto=1, retried={"decode/truncated": 1})
    (account,) = why(store.location, "0013")
    assert [(one.verdict, one.generation, one.change) for one in account.decisions] == [
        ("rejected", 1, "ingest"),
        ("kept", 2, "retry"),
    ]
    assert [place.row for place in account.places] == [len(rows_of(store)) - 1]


def test_what_was_forgotten_is_known_by_its_key_and_by_its_uid(store: Store) -> None:
    uid = example(7).uid.hex()
    forget(store, [uid])
    (by_key,), (by_uid,) = why(store.location, "0007"), why(store.location, uid)
    assert [one.verdict for one in by_key.decisions] == ["forgotten"]
    assert by_key.places == ()
    assert (by_uid.key, by_uid.forgotten) == (None, True)


def test_an_unknown_or_ambiguous_name_is_refused(store: Store) -> None:
    for asked in ("nothing", "0" * 32, "ffffffff"):
        with pytest.raises(ValueError, match="no row, no error and no input"):
            why(store.location, asked)


def test_a_beginning_that_several_uids_share_is_refused(tmp_path: Path) -> None:
    beginnings: dict[str, int] = {}
    number = next(i for i in range(10_000) if beginnings.setdefault(example(i).uid.hex()[:4], i) != i)
    other = beginnings[example(number).uid.hex()[:4]]
    write(tmp_path, [example(other), example(number)])
    uids = [example(other).uid.hex(), example(number).uid.hex()]
    needed = next(i for i in range(33) if uids[0][:i] != uids[1][:i])
    with pytest.raises(ValueError, match=f"is the beginning of 2 uids.*; {needed} digits tell them apart"):
        why(str(tmp_path), uids[0][: needed - 1])
    assert why(str(tmp_path), uids[0][:needed])[0].key == example(other).key
    with pytest.raises(ValueError, match="give 4 digits or more"):
        why(str(tmp_path), uids[0][:3])
