"""`verify` finds whatever is not as it was committed, names the file and the rows, and goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline.pipelines.corpus.plan import make_plan, save_plan
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.rows import file_rows
from sightline.pipelines.corpus.schema import Rejected, Row
from sightline.pipelines.corpus.shards import write_rows
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.corpus.verify import Damage, ranges, verify
from tests.corpora import digits_source, ingest_alone
from tests.pipelines.test_corpus import KEYS, example, rejection, write_corpus

Break = Callable[[Path], None]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 digits in three shards, the last of them with nothing wrong in it."""
    folder = tmp_path_factory.mktemp("verify")
    return ingest_alone(digits_source(folder / "digits", train=560, val=20, test=20), folder / "corpus")


@pytest.fixture
def corpus(intact: Path, tmp_path: Path) -> Path:
    shutil.copytree(intact, tmp_path / "corpus")
    return tmp_path / "corpus"


def planned_corpus(
    folder: Path, outcomes: Sequence[Row | Rejected], *, shard_rows: int = 300, classes: Iterable[tuple[int, str]] = ()
) -> Path:
    """`write_corpus`, with the plan that it only pretends."""
    keys = [{"key": outcome.key} for outcome in outcomes]
    save_plan(open_store(folder), *make_plan(keys, KEYS, {"test": 1}, seed=0, shard_rows=shard_rows))
    write_corpus(folder, outcomes, shard_rows=shard_rows, classes=classes)
    return folder


def damages(corpus: Path, *, quick: bool = False, cpus: int = 1) -> list[Damage]:
    return list(verify(open_store(corpus), quick=quick, cpus=cpus).damages)


def first(corpus: Path, folder: str, number: int = 0) -> Path:
    return sorted(path for path in (corpus / folder).rglob("*") if path.is_file())[number]


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def position_of(path: Path, needle: bytes) -> int:
    data = path.read_bytes()
    assert data.count(needle) == 1
    return data.index(needle)


def test_an_intact_corpus_has_no_damage(corpus: Path) -> None:
    found = verify(open_store(corpus))
    assert found.damages == ()
    assert (found.shards, found.rows, found.generation) == (3, 600, 1)
    assert verify(open_store(corpus), quick=True).damages == ()


def test_a_flipped_byte_in_an_image_names_the_row(corpus: Path) -> None:
    shard = first(corpus, "data", 1)
    rows = list(file_rows(shard))
    flip(shard, position_of(shard, bytes(rows[137].image)) + 40)
    name = str(shard.relative_to(corpus))
    assert damages(corpus) == [Damage(name, "not what was committed", 137, 137)]
    assert damages(corpus, quick=True) == []


@pytest.mark.parametrize("column", ["caption", "key", "source", "extra"])
def test_a_flipped_byte_in_any_text_of_a_row_names_the_row(tmp_path: Path, column: str) -> None:
    row = replace(example(41), key="the key", source="the source", extra='{"the extra":1}')
    written = [example(i) for i in range(40)] + [row] + [example(i) for i in range(50, 300)]
    planned_corpus(tmp_path, written)
    shard = first(tmp_path, "data")
    text = {"caption": b"caption 1, of 41", "key": b"the key", "source": b"the source", "extra": b"the extra"}[column]
    flip(shard, position_of(shard, text))
    assert [(damage.first, damage.last) for damage in damages(tmp_path)] == [(40, 40)]


def test_a_label_that_no_digest_can_be_taken_of_is_damage(tmp_path: Path) -> None:
    planned_corpus(tmp_path, [replace(example(i), labels=(0x1234567,)) for i in range(3)])
    shard = first(tmp_path, "data")
    data = bytearray(shard.read_bytes())
    data[data.index((0x1234567).to_bytes(4, "little")) + 3] ^= 0x80  # the sign
    shard.write_bytes(data)
    assert [(damage.first, damage.last) for damage in damages(tmp_path)] == [(0, 0)]


def test_all_damages_are_told(corpus: Path) -> None:
    shards = [first(corpus, "data", number) for number in (0, 2)]
    for shard in shards:
        rows = list(file_rows(shard))
        flip(shard, position_of(shard, bytes(rows[3].image)) + 9)
    first(corpus, "meta", 1).unlink()
    expected = {str(path.relative_to(corpus)) for path in shards} | {
        str(first(corpus, "data", 1).relative_to(corpus)).replace("data", "meta").replace("arrow", "parquet")
    }
    assert {damage.file for damage in damages(corpus)} == expected
    assert damages(corpus, cpus=2) == damages(corpus)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_bytes(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))


@pytest.mark.parametrize("harm", [Path.unlink, truncate, empty, other_bytes])
@pytest.mark.parametrize("folder", ["data", "meta", "plans", "manifests/pages"])
def test_a_file_that_is_gone_cut_or_replaced_is_named(corpus: Path, folder: str, harm: Break) -> None:
    victim = first(corpus, folder)
    harm(victim)
    assert str(victim.relative_to(corpus)) in {damage.file for damage in damages(corpus)}


def test_a_row_that_was_swapped_for_another_valid_one_is_named(corpus: Path) -> None:
    shard = first(corpus, "data")
    rows = list(file_rows(shard))
    rows[10] = list(file_rows(first(corpus, "data", 1)))[10]
    write_rows(shard, rows)
    found = [damage for damage in damages(corpus) if damage.first is not None]
    assert [(damage.first, damage.last) for damage in found] == [(10, 10)]


def test_a_shard_that_was_rewritten_with_its_sidecar_and_record_no_longer_fits_its_page(corpus: Path) -> None:
    shard, other = first(corpus, "data"), first(corpus, "data", 1)
    rows: list[Row] = list(file_rows(shard))
    rows[0] = next(file_rows(other))
    write_rows(shard, rows)
    page = first(corpus, "manifests/pages")
    facts = json.loads(page.read_text())
    record = next(record for record in facts["shards"] if record["file"] == str(shard.relative_to(corpus)))
    record.update(bytes=shard.stat().st_size, sha256=sha256(shard.read_bytes()).hexdigest())
    page.write_text(json.dumps(facts))
    assert {str(page.relative_to(corpus))} <= {damage.file for damage in damages(corpus)}


def forged(path: Path, name: str, value: object) -> None:
    manifest = json.loads(path.read_text())
    assert manifest[name] != value
    manifest[name] = value
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


@pytest.mark.parametrize(
    ("name", "value"),
    [("rows", 599), ("seen", 601), ("rejected", 1), ("root", "0" * 64), ("fingerprint", "0" * 128), ("codes", {"a/b": 1})],
)
def test_a_forged_sum_is_found_though_both_copies_agree(corpus: Path, name: str, value: object) -> None:
    for path in (corpus / "manifest.json", corpus / "manifests/gen-000001.json"):
        forged(path, name, value)
    found = damages(corpus)
    assert [damage.file for damage in found] == ["manifests/gen-000001.json"]
    assert f"says {name}" in found[0].problem


def test_a_sidecar_that_lies_names_its_rows(corpus: Path) -> None:
    path = first(corpus, "meta")
    table = pq.read_table(path)
    widths = table["width"].to_pylist()
    widths[7], widths[8] = 1, 2
    pq.write_table(table.set_column(table.column_names.index("width"), table.field("width"), pa.array(widths, pa.int32())), path)
    found = [damage for damage in damages(corpus) if damage.first is not None]
    assert found == [Damage(str(path.relative_to(corpus)), "not what the shard has", 7, 8)]


def test_an_errors_table_that_lies_is_named(tmp_path: Path) -> None:
    planned_corpus(tmp_path, [example(0), rejection(1), rejection(2, "filter", "small")])
    assert damages(tmp_path) == []
    path = first(tmp_path, "errors")
    table = pq.read_table(path).slice(0, 1)
    pq.write_table(pa.concat_tables([table, table]), path)
    assert str(path.relative_to(tmp_path)) in {damage.file for damage in damages(tmp_path)}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    planned_corpus(folder, [*(example(i) for i in range(9)), rejection(9)], shard_rows=5, classes=[(0, "cat"), (1, "dog")])
    assert damages(folder) == []
    return folder


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, derandomize=True)
@given(data=st.data())
def test_any_flipped_byte_of_a_shard_or_manifest_is_found(small: Path, data: st.DataObject) -> None:
    files = sorted(
        path for folder in ("data", "meta", "errors", "manifests") for path in (small / folder).rglob("*") if path.is_file()
    )
    path = data.draw(st.sampled_from(files))
    before = path.read_bytes()
    position, mask = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(1, 255))
    path.write_bytes(before[:position] + bytes([before[position] ^ mask]) + before[position + 1 :])
    try:
        assert damages(small)
    finally:
        path.write_bytes(before)


def test_rows_run_together_into_ranges() -> None:
    assert list(ranges({5, 1, 2, 3, 9})) == [(1, 3), (5, 5), (9, 9)]
    assert list(ranges([])) == []


@pytest.fixture
def in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # shards are cached below it
    url = f"memory://verify-{uuid4().hex}/corpus"
    yield url
    fsspec.filesystem("memory").rm(url, recursive=True)


def test_an_object_store_is_read_and_not_the_cache_of_it(tmp_path: Path, in_memory: str) -> None:
    ingest_alone(str(digits_source(tmp_path / "digits", train=30, val=0, test=0)), in_memory)
    store = open_store(in_memory)
    assert verify(store).damages == ()
    name = next(name for folder in store.folders("data") for name in store.names(f"data/{folder}"))
    corpus = Corpus.open(in_memory)
    corpus.image(0)  # fills the cache
    data = bytearray(store.read(name))
    data[len(data) // 2] ^= 255
    store.replace(name, bytes(data))
    assert [damage.file for damage in verify(store).damages] == [name]


def test_nowhere_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no corpus"):
        verify(open_store(tmp_path / "nowhere"))
