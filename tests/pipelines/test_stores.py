"""Every kind of storage keeps the same promises: a folder, an object store in memory, a real S3 API."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import fsspec
import numpy as np
import pytest

from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.manifest import CURRENT, encode, generation_name, newest, read_manifest
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import LocalStore, Store, open_store
from sightline.pipelines.ingest.build import build_shard
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions
from tests.corpora import digits_source, ingest_alone
from tests.s3 import MakeBucket


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the cache of shards lies below it
    if request.param == "folder":
        yield open_store(tmp_path / "corpus")
    elif request.param == "memory":
        url = f"memory://test-{uuid4().hex}/corpus"
        yield open_store(url)
        fsspec.filesystem("memory").rm(url, recursive=True) if fsspec.filesystem("memory").exists(url) else None
    else:
        make_bucket: Callable[[], str] = request.getfixturevalue("s3")
        yield open_store(f"{make_bucket()}/deep/corpus")


def put(store: Store, name: str, data: bytes) -> None:
    with store.temporary() as temporary:
        temporary.write_bytes(data)
        store.publish(temporary, name)


def test_what_was_published_is_there_under_its_name(store: Store) -> None:
    put(store, "data/plan/a.arrow", b"first")
    put(store, "data/plan/b.arrow", b"second")
    assert store.read("data/plan/a.arrow") == b"first"
    assert store.read_all(["data/plan/b.arrow", "data/plan/a.arrow"]) == [b"second", b"first"]
    assert store.read_all(["data/plan/b.arrow"]) == [b"second"]
    assert store.read_all([]) == []
    assert store.size("data/plan/b.arrow") == 6
    assert store.names("data/plan") == ["data/plan/a.arrow", "data/plan/b.arrow"]
    assert store.names("data") == []
    assert store.folders("data") == ["plan"]
    assert "data" in store.entries()
    with store.open("data/plan/b.arrow") as file:
        file.seek(3)
        assert file.read() == b"ond"
    assert store.local("data/plan/a.arrow", sha256(b"first").hexdigest()).read_bytes() == b"first"


def test_what_is_not_there_is_said_to_be_missing(store: Store) -> None:
    assert store.size("data/a") is None
    assert store.names("data") == store.folders("data") == store.entries() == []
    with pytest.raises(FileNotFoundError):
        store.read("data/a")
    put(store, "data/a", b"12")
    put(store, "meta/b", b"123")
    assert store.missing([("data/a", 2), ("meta/b", 3)]) is None
    assert store.missing([("data/a", 2), ("meta/b", 2)]) == "meta/b"
    assert store.missing([("data/c", 2), ("meta/b", 3)]) == "data/c"


def test_a_mark_is_an_empty_file_that_may_be_made_again(store: Store) -> None:
    for _ in range(2):
        store.mark("_staging/plan/mark")
        assert store.size("_staging/plan/mark") == 0


def test_only_one_of_several_creates_and_a_replacement_always_wins(store: Store) -> None:
    assert store.create("gen", b"mine")
    assert not store.create("gen", b"yours")
    assert store.read("gen") == b"mine"
    store.replace("gen", b"newer")
    assert store.read("gen") == b"newer"


def test_removing_takes_exactly_what_was_named_and_may_be_repeated(store: Store) -> None:
    for name in ("a/x", "a/deep/y", "ab/z"):
        store.replace(name, b"1")
    store.remove("a/x")
    store.remove("a/x")
    assert (store.size("a/x"), store.size("a/deep/y")) == (None, 1)
    store.remove_folder("a")
    store.remove_folder("a")
    assert (store.size("a/deep/y"), store.size("ab/z")) == (None, 1)


def test_a_temporary_file_leaves_nothing_behind_when_its_writer_fails(store: Store) -> None:
    with pytest.raises(RuntimeError), store.temporary() as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert not temporary.exists()


def test_a_store_travels_to_another_process(store: Store) -> None:
    store.replace("a", b"1")
    there = pickle.loads(pickle.dumps(store))
    assert there.read("a") == b"1"
    assert there.location == store.location


def test_a_corpus_has_the_same_root_and_rows_wherever_it_lies(store: Store, tmp_path: Path) -> None:
    source = digits_source(tmp_path / "source", 40, 5, 10)
    here = Corpus.open(ingest_alone(source, tmp_path / "here"))
    there = Corpus.open(ingest_alone(source, store.location))
    assert (there.root, there.rows) == (here.root, here.rows)
    assert [there.captions(i) for i in range(there.rows)] == [here.captions(i) for i in range(here.rows)]
    assert all(bytes(there.image(i)) == bytes(here.image(i)) for i in range(here.rows))
    assert there.sidecar().equals(here.sidecar())
    assert np.array_equal(there.select("train"), here.select("train"))
    again = pickle.loads(pickle.dumps(there))
    assert (again.root, again.row(3).key) == (here.root, here.row(3).key)


def test_finished_shards_are_found_again(store: Store, tmp_path: Path) -> None:
    from sightline.pipelines.corpus.shards import done_records

    prepared = prepare(digits_source(tmp_path / "source", 40, 5, 10), store.location, IngestOptions(shard_rows=10))
    records = {i: build_shard(prepared.store, prepared.plan, prepared.source, i) for i in (0, 2, 3)}
    assert done_records(store, prepared.plan.plan_id) == records
    store.remove(records[2].file)
    assert set(done_records(store, prepared.plan.plan_id)) == {0, 3}


def test_a_writer_that_died_before_the_copy_has_committed_and_a_late_copy_takes_nothing_back(store: Store, tmp_path: Path) -> None:
    source = digits_source(tmp_path / "source", 20, 5, 10)
    ingest_alone(source, store.location)
    first = read_manifest(store)
    store.remove(CURRENT)  # as if it had died after `create`
    assert newest(store) == first
    digits_source(tmp_path / "more", 20, 5, 10)
    prepared = prepare(source, store.location, IngestOptions())
    assert prepared.report is not None
    second = encode(first).replace(b'"generation": 1', b'"generation": 2').replace(b'"parent": null', b'"parent": 1')
    assert store.create(generation_name(2), second)
    store.replace(CURRENT, encode(first))  # a writer that was late
    assert read_manifest(store).generation == 2


def test_a_twin_commits_once(store: Store, tmp_path: Path) -> None:
    prepared = prepare(digits_source(tmp_path / "source", 20, 5, 10), store.location, IngestOptions())
    records = {i: build_shard(prepared.store, prepared.plan, prepared.source, i) for i in range(prepared.plan.shards)}
    manifests = [commit_plan(store, prepared.plan, records, prepared.classes, {}) for _ in range(2)]
    assert manifests[0] == manifests[1]
    assert store.names("manifests") == [generation_name(1)]


def test_a_bucket_that_is_not_there_or_not_allowed_is_one_clear_sentence(s3: MakeBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    s3()
    with pytest.raises(FileNotFoundError, match="no corpus"):
        Corpus.open("s3://there-is-no-such-bucket/corpus")
    with pytest.raises(OSError, match="bucket"):
        open_store("s3://there-is-no-such-bucket/corpus").replace("a", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionError, match="needs credentials"):
        Corpus.open("s3://bucket/corpus")


def test_a_folder_is_a_local_store_by_path_and_by_url(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/a") == open_store(tmp_path / "a") == LocalStore(tmp_path / "a")


def test_a_link_leads_anywhere_in_a_corpus_and_not_out_of_it(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a").write_bytes(b"mine")
    store = LocalStore(tmp_path / "corpus")
    store.replace("data/a", b"1")
    (tmp_path / "corpus" / "inner").symlink_to("data")
    (tmp_path / "corpus" / "outer").symlink_to("../secret")
    (tmp_path / "corpus" / "data" / "b").symlink_to(tmp_path / "secret" / "a")
    (tmp_path / "linked").symlink_to("corpus")
    assert store.read("inner/a") == LocalStore(tmp_path / "linked").read("data/a") == b"1"
    uses: list[Callable[[str], object]] = [store.read, store.open, store.remove, lambda name: store.local(name, "")]
    uses += [lambda name: store.replace(name, b"2"), lambda name: store.create(name, b"2"), lambda name: put(store, name, b"2")]
    for name in ("outer/a", "data/b"):
        for use in uses:
            with pytest.raises(ValueError, match="a link that leads out of the corpus"):
                use(name)
    for listing in (store.names, store.folders, store.remove_folder):
        with pytest.raises(ValueError, match="a link that leads out of the corpus"):
            listing("outer")
    assert (tmp_path / "secret" / "a").read_bytes() == b"mine"
