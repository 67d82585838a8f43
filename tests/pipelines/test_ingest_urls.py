"""What servers say of a download is kept beside the rows and decides none of them: the same bytes are the same corpus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sightline.fetch.result import FetchOptions
from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.forget import forget
from sightline.pipelines.corpus.gc import collect
from sightline.pipelines.corpus.manifest import Manifest, read_manifest, read_shards
from sightline.pipelines.corpus.merge import merge
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.shards import Answer, read_answers, write_files
from sightline.pipelines.corpus.store import LocalStore
from sightline.pipelines.corpus.verify import verify
from sightline.pipelines.ingest.build import Kept, build_shard
from sightline.pipelines.ingest.fetch.downloads import Downloads
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions
from tests.fetching import QUICK
from tests.hostile_server import Exchange, HostileServer, hostile_server, png

FETCH = replace(QUICK, respect_robots_txt=False)


def ingested(urls: list[str], folder: Path) -> Manifest:
    folder.mkdir()
    lines = [json.dumps({"url": url, "caption": f"picture {i}", "key": str(i)}) for i, url in enumerate(urls)]
    (folder / "urls.jsonl").write_text("\n".join(lines) + "\n")
    prepared = prepare(folder / "urls.jsonl", folder / "corpus", IngestOptions(shard_rows=4, fetch=FETCH))
    plan, store = prepared.plan, prepared.store
    with Downloads(FETCH) as downloads:
        records = {i: build_shard(store, plan, prepared.source, i, Kept(downloads)) for i in range(plan.shards)}
    return commit_plan(store, plan, records, prepared.classes, {})


async def another_each_time(exchange: Exchange) -> None:
    await exchange.redirect(f"/body/{exchange.path}?signature={exchange.number}")


async def body(exchange: Exchange) -> None:
    path, _, signature = exchange.path.partition("?signature=")
    size = 8 + int(path.rpartition("/")[2])
    day = f"Sun, 0{signature} Nov 2026 00:00:00 GMT"
    await exchange.answer(png(size), f"ETag: {signature}", f"Date: {day}", "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT")


def urls_of(server: HostileServer) -> list[str]:
    return [server.url(f"x/{i}") for i in range(10)]


def answers_of(folder: Path) -> dict[str, Answer]:
    store = LocalStore(folder)
    shards = read_shards(store, read_manifest(store).pages)
    return {answer.key: answer for shard in shards for answer in read_answers(store, shard)}


def test_two_ingests_of_unchanged_urls_have_one_root_and_each_its_answers(tmp_path: Path) -> None:
    with hostile_server({"x": another_each_time, "body": body}) as server:
        first, second = (ingested(urls_of(server), tmp_path / name) for name in ("a", "b"))
        host = server.url("body/x/3")
    assert first.rows == 10
    assert first.root == second.root
    assert json.loads(Corpus.open(tmp_path / "a" / "corpus").row(0).extra) == {}
    modified = "Mon, 01 Jan 2024 00:00:00 GMT"
    for day, name in ((1, "a"), (2, "b")):
        found = answers_of(tmp_path / name / "corpus")
        assert found["3"] == Answer("3", f"{host}?signature={day}", str(day), modified, f"Sun, 0{day} Nov 2026 00:00:00 GMT")
        assert len(found) == 10


def test_answers_belong_to_the_corpus(tmp_path: Path) -> None:
    with hostile_server({"x": another_each_time, "body": body}) as server:
        urls = urls_of(server)
        ingested(urls[:6], tmp_path / "a")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "urls.jsonl").write_text(json.dumps({"url": urls[9], "caption": "x", "key": "nine"}) + "\n")
        prepared = prepare(tmp_path / "b" / "urls.jsonl", tmp_path / "b" / "corpus", IngestOptions(fetch=FETCH))
        with Downloads(FETCH) as downloads:
            record = build_shard(prepared.store, prepared.plan, prepared.source, 0, Kept(downloads))
        commit_plan(prepared.store, prepared.plan, {0: record}, [], {})
    merge(str(tmp_path / "c"), [str(tmp_path / name / "corpus") for name in "ab"])
    collect(LocalStore(tmp_path / "c"), older_than_s=0)
    assert set(answers_of(tmp_path / "c")) == {"nine", *"012345"}
    assert not verify(LocalStore(tmp_path / "c")).damages


def test_forgetting_a_row_forgets_its_answer_and_keeps_the_others(tmp_path: Path) -> None:
    with hostile_server({"x": another_each_time, "body": body}) as server:
        ingested(urls_of(server), tmp_path / "a")
    store, row = LocalStore(tmp_path / "a" / "corpus"), Corpus.open(tmp_path / "a" / "corpus").row(0)
    forget(store, [row.uid.hex()])
    collect(store, purge=True, older_than_s=0)
    assert set(answers_of(store.root)) == set("0123456789") - {row.key}
    assert not verify(store).damages


def test_damaged_answers_are_found(tmp_path: Path) -> None:
    with hostile_server({"x": another_each_time, "body": body}) as server:
        ingested(urls_of(server)[:2], tmp_path / "a")
    (path,) = (tmp_path / "a" / "corpus" / "meta").rglob("*.answers.parquet")
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    (damage,) = verify(LocalStore(tmp_path / "a" / "corpus")).damages
    assert damage.file.endswith(path.name)


def test_other_rules_of_downloading_are_another_plan_and_more_patience_is_not(tmp_path: Path) -> None:
    (tmp_path / "urls.csv").write_text("url,caption\nhttp://a.example/x.jpg,x\n")
    source, corpus = tmp_path / "urls.csv", tmp_path / "corpus"
    first = prepare(source, corpus, IngestOptions(fetch=FETCH))
    patient = replace(FETCH, total_timeout_s=100.0, retries=9, per_host=1)
    assert prepare(source, corpus, IngestOptions(fetch=patient)).plan == first.plan
    for other in ({"respect_opt_out": False}, {"max_bytes": 9}, {"allow_loopback": False}):
        with pytest.raises(FileExistsError, match="other options"):
            prepare(source, corpus, IngestOptions(fetch=replace(FETCH, **other)))  # type: ignore[arg-type]


def test_only_answers_about_kept_rows_are_written(tmp_path: Path) -> None:
    with hostile_server({"x": another_each_time, "body": body}) as server:
        ingested(urls_of(server)[:2], tmp_path / "a")
    corpus = Corpus.open(tmp_path / "a" / "corpus")
    kept, gone = corpus.row(0), corpus.row(1)
    answers = [Answer(key, "http://a.example/", None, None, None) for key in (kept.key, gone.key)]
    record = write_files(LocalStore(tmp_path / "b"), "plan", 0, [kept], 1, answers)
    assert list(read_answers(LocalStore(tmp_path / "b"), record)) == answers[:1]
    bare = write_files(LocalStore(tmp_path / "b"), "plan", 1, [kept], 1, answers[1:])
    assert (bare.answers, bare.answers_bytes, bare.answers_sha256) == (None, 0, None)


@pytest.mark.parametrize(
    ("workers", "per_host", "few", "each"), [(1, 4, 1, 4), (2, 4, 2, 2), (3, 4, 3, 1), (4, 4, 4, 1), (1000, 4, 4, 1), (0, 4, 1, 4)]
)
def test_all_workers_together_keep_the_limit_of_a_host(workers: int, per_host: int, few: int, each: int) -> None:
    count, share = FetchOptions(per_host=per_host).shared(workers)
    assert (count, share.per_host) == (few, each)
    assert count * share.per_host <= per_host


def test_what_decides_rows_is_told_from_patience() -> None:
    usual = FetchOptions()
    for name, value in {"total_timeout_s": 9.0, "idle_timeout_s": 9.0, "retries": 0, "backoff_s": 0.1, "per_host": 1}.items():
        assert replace(usual, **{name: value}).config() == usual.config()
    assert replace(usual, user_agent="Sightline/2 (me@a.example)").config() == usual.config()
    deciding = {
        "max_bytes": 9,
        "allow_loopback": True,
        "respect_robots_txt": False,
        "respect_opt_out": False,
        "user_agent": "other",
    }
    assert len({json.dumps(replace(usual, **{name: value}).config()) for name, value in deciding.items()}) == len(deciding)
