"""A merge has the rows of its inputs in their order, and reads none of their images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest
from PIL import Image

from sightline.pipelines.corpus import merge as module
from sightline.pipelines.corpus.digests import root_digest
from sightline.pipelines.corpus.forget import forget, read_tombstones
from sightline.pipelines.corpus.manifest import Manifest, read_manifest
from sightline.pipelines.corpus.merge import merge
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import make_row
from sightline.pipelines.corpus.store import Store, open_store
from sightline.pipelines.corpus.verify import verify
from sightline.pipelines.export.export import export
from tests.corpora import ingest_alone
from tests.pipelines.test_corpus import example, rejection
from tests.pipelines.test_corpus_forget import rows_of, write


@pytest.fixture(params=["folder", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where corpora of this test lie."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the cache of shards lies below it
    url = f"memory://merge-{uuid4().hex}"
    yield str(tmp_path) if request.param == "folder" else url
    if request.param == "memory":
        fsspec.filesystem("memory").rm(url, recursive=True)


def three(place: str) -> list[str]:
    for number in range(3):
        first = 100 * number
        write(f"{place}/{number}", [*(example(i) for i in range(first, first + 30)), rejection(first + 30)])
    return [f"{place}/{number}" for number in range(3)]


def manifests(sources: list[str]) -> list[Manifest]:
    return [read_manifest(open_store(source)) for source in sources]


def test_rows_root_and_sums_are_those_of_the_inputs(place: str) -> None:
    sources = three(place)
    parts = manifests(sources)
    manifest = merge(f"{place}/all", sources)
    store = open_store(f"{place}/all")
    assert rows_of(store) == [row for source in sources for row in rows_of(open_store(source))]
    assert manifest.root == root_digest(bytes.fromhex(page.digest) for part in parts for page in part.pages).hex()
    assert int(manifest.fingerprint, 16) == sum(int(part.fingerprint, 16) for part in parts) % 2**512
    assert (manifest.change, manifest.seen, manifest.rows, manifest.codes) == ("merge", 93, 90, {"decode/truncated": 3})
    assert manifest.plan_ids == [part.plan_ids[0] for part in parts]
    assert verify(store).damages == ()
    assert merge(f"{place}/all", sources) == manifest
    assert store.names("_staging") == []


def test_a_merge_of_merges_has_the_same_fingerprint(place: str) -> None:
    sources = three(place)
    merge(f"{place}/two", sources[:2])
    nested = merge(f"{place}/nested", [f"{place}/two", sources[2]])
    flat = merge(f"{place}/flat", sources)
    assert (nested.root, nested.fingerprint) == (flat.root, flat.fingerprint)
    assert merge(f"{place}/turned", sources[::-1]).fingerprint == flat.fingerprint


def test_on_one_file_system_shards_are_linked(tmp_path: Path) -> None:
    sources = three(str(tmp_path))
    merge(str(tmp_path / "all"), sources)
    links = {path.stat().st_ino for path in (tmp_path / "all" / "data").rglob("*.arrow")}
    assert links == {path.stat().st_ino for source in sources for path in (Path(source) / "data").rglob("*.arrow")}


def test_a_folder_joins_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    dest = f"memory://merge-{uuid4().hex}/all"
    merge(dest, three(str(tmp_path)))
    assert verify(open_store(dest)).damages == ()
    fsspec.filesystem("memory").rm(dest, recursive=True)


def test_an_interrupted_merge_goes_on(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, copies = three(place), list[str]()

    def copy(source: Store, dest: Store, name: str) -> None:
        if len(copies) > 4:
            raise KeyboardInterrupt
        copies.append(name)
        original(source, dest, name)

    original = module.copy
    monkeypatch.setattr(module, "copy", copy)
    with pytest.raises(KeyboardInterrupt):
        merge(f"{place}/all", sources)
    with pytest.raises(FileNotFoundError):
        Corpus.open(f"{place}/all")
    monkeypatch.undo()
    with pytest.raises(FileExistsError, match="something else"):
        merge(f"{place}/all", sources[:2])
    merge(f"{place}/all", sources)
    assert verify(open_store(f"{place}/all")).damages == ()


def test_the_same_plan_twice_is_refused(tmp_path: Path) -> None:
    sources = three(str(tmp_path))
    merge(str(tmp_path / "two"), sources[:2])
    for twice in ([sources[0], sources[0]], [sources[0], str(tmp_path / "two")]):
        with pytest.raises(ValueError, match="both have plan"):
            merge(str(tmp_path / "all"), twice)
    with pytest.raises(ValueError, match="two corpora or more"):
        merge(str(tmp_path / "all"), sources[:1])
    assert not (tmp_path / "all").exists()


def test_a_destination_with_something_else_is_refused(tmp_path: Path) -> None:
    sources = three(str(tmp_path))
    for dest in (sources[2], str(tmp_path)):
        with pytest.raises(FileExistsError, match="fresh folder"):
            merge(dest, sources[:2])


def test_class_ids_that_clash_are_told_with_both_corpora_and_can_be_mended_by_an_export(tmp_path: Path) -> None:
    names = {"a": ["cat", "dog"], "b": ["dog", "fish"]}
    for folder, classes in names.items():
        for name in classes:
            (tmp_path / f"{folder}-source" / name).mkdir(parents=True)
            image = Image.new("RGB", (8, 8), (len(name), ord(folder), 0))
            image.save(tmp_path / f"{folder}-source" / name / f"{folder}.png")
        ingest_alone(tmp_path / f"{folder}-source", tmp_path / folder)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(ValueError, match=r"class 0 is 'cat' in .*/a and 'dog' in .*/b, and 1 more ids have .*export .*/b"):
        merge(str(tmp_path / "all"), [a, b])
    export(Corpus.open(b), str(tmp_path / "mended"), "folder")
    (tmp_path / "mended" / "classes.csv").write_text("id,name\n1,dog\n2,fish\n")
    ingest_alone(tmp_path / "mended", tmp_path / "b2")
    merge(str(tmp_path / "all"), [a, str(tmp_path / "b2")])
    corpus = Corpus.open(tmp_path / "all")
    assert corpus.classes == ("cat", "dog", "fish")
    found = sorted((row.key.split("/")[0], corpus.classes[row.labels[0]]) for row in map(corpus.row, range(corpus.rows)))
    assert found == [("cat", "cat"), ("dog", "dog"), ("dog", "dog"), ("fish", "fish")]


def test_what_one_has_forgotten_does_not_come_back_by_another(tmp_path: Path) -> None:
    row = make_row(key="again", image=bytes(example(7).image), format="jpeg", width=1, height=1, captions=("other words",))
    one, two = write(tmp_path / "one", [example(i) for i in range(30)]), write(tmp_path / "two", [row, example(99)])
    forget(one, [example(7).uid.hex()])
    with pytest.raises(ValueError, match=f"row {row.uid.hex()} of .*two was forgotten in .*one; `sightline corpus forget"):
        merge(str(tmp_path / "all"), [str(tmp_path / "one"), str(tmp_path / "two")])
    forget(two, [row.uid.hex()])
    manifest = merge(str(tmp_path / "all"), [str(tmp_path / "one"), str(tmp_path / "two")])
    tombstones = read_tombstones(open_store(tmp_path / "all"), manifest.tombstones)
    assert all(uid in tombstones for uid in (row.uid, example(7).uid))
    assert manifest.forgotten == 2
    assert verify(open_store(tmp_path / "all")).damages == ()
