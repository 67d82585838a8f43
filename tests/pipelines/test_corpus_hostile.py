"""A corpus that somebody else wrote is refused in a sentence where it is damaged, and reaches nothing outside of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pyarrow as pa
import pytest

from sightline.pipelines.corpus.columns import Rule, column_info, columns, write_column
from sightline.pipelines.corpus.describe import describe
from sightline.pipelines.corpus.history import ancestors
from sightline.pipelines.corpus.manifest import CURRENT, decode, encode, read_manifest, read_shards
from sightline.pipelines.corpus.merge import merge
from sightline.pipelines.corpus.object_store import ObjectStore
from sightline.pipelines.corpus.page import html_page
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.corpus.verify import verify
from sightline.pipelines.export.export import file_name
from sightline.pipelines.export.sample import extension
from tests.pipelines.test_corpus import example, write_corpus
from tests.pipelines.test_corpus_forget import write


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "data/../../x", "a\\b", "a\0b"])
@pytest.mark.parametrize("location", ["folder", "memory://hostile/corpus"])
def test_no_name_leaves_its_store(location: str, name: str, tmp_path: Path) -> None:
    store = open_store(tmp_path if location == "folder" else location)
    for verb in (store.read, store.size, store.open, store.names, store.remove, store.remove_folder):
        with pytest.raises(ValueError, match="no name within a corpus"):
            verb(name)


@pytest.mark.parametrize(
    "changed",
    [
        {"root": "<b>"},
        {"fingerprint": 7},
        {"rows": "many"},
        {"rows": -1},
        {"pages": 3},
        {"pages": [{"digest": "0" * 64, "file": "/etc/passwd", "shards": 1, "rows": 1, "bytes": 1}]},
        {"plans": [7]},
        {"codes": []},
        {"classes": [{"id": "0", "name": 3}]},
        {"parent": 1},
        {"unknown": 1},
    ],
)
def test_a_damaged_manifest_is_one_sentence(changed: dict[str, Any], tmp_path: Path) -> None:
    write_corpus(tmp_path, [example(0)])
    fields = json.loads((tmp_path / CURRENT).read_bytes())
    with pytest.raises(ValueError, match=r"^here is damaged"):
        decode(json.dumps({**fields, **changed}).encode(), "here")


def test_a_chain_of_parents_that_runs_in_a_circle_ends_in_a_sentence(tmp_path: Path) -> None:
    write_corpus(tmp_path, [example(0)])
    fields = json.loads((tmp_path / CURRENT).read_bytes())
    (tmp_path / "manifests" / "gen-000001.json").write_text(json.dumps({**fields, "generation": 3, "parent": 1}))
    hostile = decode(json.dumps({**fields, "generation": 2, "parent": 1}).encode(), "here")
    with pytest.raises(ValueError, match=r"gen-000001\.json is damaged; see `sightline corpus verify"):
        list(ancestors(open_store(tmp_path), hostile))


def test_a_huge_class_id_takes_no_memory(tmp_path: Path) -> None:
    write_corpus(tmp_path, [example(0)])
    fields = json.loads((tmp_path / CURRENT).read_bytes())
    data = json.dumps({**fields, "classes": [{"id": 2**62, "name": "cat"}]}).encode()
    corpus = Corpus(open_store(tmp_path), decode(data, "here"), Corpus.open(tmp_path).shards)
    assert corpus.class_names == {2**62: "cat"}
    with pytest.raises(ValueError, match="has a class 4611686018427387904, and ids up to 1,000,000 can be used"):
        _ = corpus.classes


def test_a_cut_manifest_names_the_generation_that_is_whole(tmp_path: Path) -> None:
    write_corpus(tmp_path, [example(0)])
    whole = (tmp_path / CURRENT).read_bytes()
    (tmp_path / CURRENT).write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"as manifests/gen-000001.json is whole, copy it over manifest.json$"):
        Corpus.open(tmp_path)
    found = [str(damage) for damage in verify(open_store(tmp_path)).damages if damage.file == CURRENT]
    assert found == [f"{CURRENT}: is no copy of manifests/gen-000001.json; copy manifests/gen-000001.json over {CURRENT}"]
    (tmp_path / "manifests" / "gen-000001.json").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=r"is no manifest; ingest into a fresh folder$"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"shards": 3}', b'{"shards": [{}]}', b"[" * 100_000])
def test_a_damaged_page_is_one_sentence(data: bytes, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [example(0)])
    (tmp_path / corpus.manifest.pages[0].file).write_bytes(data)
    with pytest.raises(ValueError, match="is damaged; see `sightline corpus verify"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("changed", [{"file": "../x"}, {"sha256": "../x"}, {"rows": -1}, {"content": "0" * 64}, {"rows": 2}])
def test_a_page_that_lies_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [example(0)])
    page = tmp_path / corpus.manifest.pages[0].file
    page.write_text(json.dumps({"shards": [{**corpus.shards[0].to_json(), **changed}]}))
    with pytest.raises(ValueError, match="damaged"):
        Corpus.open(tmp_path)


def test_a_root_that_its_pages_do_not_give_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [example(0)])
    (tmp_path / CURRENT).write_bytes(encode(replace(corpus.manifest, root="0" * 64)))
    with pytest.raises(ValueError, match="its root is not that of its shards"):
        Corpus.open(tmp_path)


def test_a_shard_of_another_schema_or_with_wild_offsets_is_refused(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [example(i) for i in range(20)])
    path = tmp_path / corpus.shards[0].file
    whole = path.read_bytes()
    with pa.ipc.open_file(path) as file:
        offsets = file.get_batch(0).column("image").buffers()[1].to_pybytes()
    place = whole.index(offsets) + 8
    path.write_bytes(whole[:place] + b"\xff" * 7 + b"\x7f" + whole[place + 8 :])
    with pytest.raises(ValueError, match=r"is damaged .*corpus verify"):
        Corpus.open(tmp_path).image(0)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.schema([("other", pa.int32())])):
        pass
    path.write_bytes(path.read_bytes().ljust(len(whole), b"\0")[: len(whole)])
    with pytest.raises(ValueError, match="is damaged"):
        Corpus.open(tmp_path).image(0)


@pytest.mark.parametrize("changed", [{"name": "../../x"}, {"rows": "many"}, {"counts": 3}])
def test_a_damaged_column_is_one_sentence(changed: dict[str, Any], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [example(0)])
    write_column(corpus, "score", Rule("length", {}, pa.float32()), pa.array([1.0]))
    path = tmp_path / "columns/score/column.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    for look in (lambda: columns(corpus), lambda: column_info(corpus, "score")):
        with pytest.raises(ValueError, match=r"column\.json is damaged"):
            look()


def test_the_cache_takes_in_only_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    url = f"memory://hostile-{uuid4().hex}/corpus"
    store, cache = open_store(url), tmp_path / "home/.cache/sightline/corpora"
    store.replace("data/a", b"other")
    wanted = sha256(b"bytes").hexdigest()
    with pytest.raises(OSError, match="data/a has other bytes than were committed"):
        store.local("data/a", wanted)
    assert list(cache.iterdir()) == []
    store.replace("data/a", b"bytes")
    assert store.local("data/a", wanted) == cache / wanted
    store.replace("elsewhere/a", b"again")  # the same last name is another file
    assert store.local("elsewhere/a", sha256(b"again").hexdigest()).read_bytes() == b"again"
    with pytest.raises(ValueError, match="no sha256"):
        store.local("data/a", "../../x")
    fsspec.filesystem("memory").rm(url, recursive=True)


def test_a_failed_condition_without_its_name_is_a_lost_race(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(f"memory://hostile-{uuid4().hex}/corpus")

    def refuse(*args: object, **options: object) -> None:
        raise OSError("412")

    monkeypatch.setattr(store._fs, "pipe_file", refuse, raising=True)
    with pytest.raises(OSError, match="412"):
        store.create("gen", b"mine")
    monkeypatch.undo()
    store.replace("gen", b"yours")
    monkeypatch.setattr(store._fs, "pipe_file", refuse, raising=True)
    assert not store.create("gen", b"mine")


def test_corpora_that_share_a_key_are_not_merged(tmp_path: Path) -> None:
    write(tmp_path / "one", [example(i) for i in range(5)])
    write(tmp_path / "two", [example(i) for i in range(4, 9)])
    with pytest.raises(ValueError, match=r"one and .*two both have an input with the key '0004'"):
        merge(str(tmp_path / "all"), [str(tmp_path / "one"), str(tmp_path / "two")])
    assert not (tmp_path / "all").exists()


def test_the_page_escapes_the_root(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [example(0)])
    description = replace(describe(corpus), root="<script>", change="<script>")
    assert "<script" not in html_page(corpus, description)


def test_a_format_is_no_path_and_splits_that_differ_in_case_get_files_of_their_own() -> None:
    assert extension("jpeg") == "jpg"
    for format in ("../x", "", "PNG", "x" * 13, "a/b"):
        with pytest.raises(ValueError, match="no format"):
            extension(format)
    splits = ["Train", "train", "Data", "val"]
    names = [file_name(split, splits) for split in splits]
    assert len({name.lower() for name in [*names, "data"]}) == 5
    assert names[3] == "val"


def test_records_are_those_of_the_pages(tmp_path: Path) -> None:
    corpus, store = write_corpus(tmp_path, [example(i) for i in range(9)], shard_rows=4), open_store(tmp_path)
    assert list(corpus.shards) == read_shards(store, read_manifest(store).pages)
