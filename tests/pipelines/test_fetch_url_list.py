"""Lists of URLs as a source: what they list, what they refuse; nothing is downloaded but once, from loopback."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from sightline.pipelines.ingest.sources.captions_table import CaptionsTable
from sightline.pipelines.ingest.sources.detect import open_source
from sightline.pipelines.ingest.sources.item import Item
from sightline.pipelines.ingest.sources.place import Place
from sightline.pipelines.ingest.sources.url_list import UrlList

ROWS: list[dict[str, Any]] = [
    {"url": "https://a.example/1.jpg", "caption": "Một cậu bé, đang đá", "licence": "CC0"},
    {"url": "https://a.example/2.jpg", "caption": 'a "quote"', "licence": "CC-BY"},
    {"url": "https://a.example/1.jpg", "caption": " once more\n", "licence": "CC-BY"},
]


def write(path: Place, rows: list[dict[str, Any]]) -> Place:
    if path.suffix == ".parquet":
        with path.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(rows), file)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [list(rows[0]), *(["" if value is None else str(value) for value in row.values()] for row in rows)]
        quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
        path.write_text("\n".join(quoted) + "\n", encoding="utf-8", newline="")
    return path


def items(path: Place) -> dict[str, Item]:
    source = open_source(path)
    assert isinstance(source, UrlList)
    listed = list(source.items())
    assert len({item.key for item in listed}) == len(listed)
    return {item.key: item for item in listed}


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_rows_of_one_url_are_one_item_with_its_captions_in_order(tmp_path: Path, suffix: str) -> None:
    found = items(write(tmp_path / f"urls.{suffix}", ROWS))
    first, second = "https://a.example/1.jpg", "https://a.example/2.jpg"
    assert found == {
        first: Item(first, first, captions=("Một cậu bé, đang đá", " once more\n"), extra='{"licence":["CC0","CC-BY"]}'),
        second: Item(second, second, captions=('a "quote"',), extra='{"licence":"CC-BY"}'),
    }


@pytest.mark.parametrize(("url", "text"), [("url", "captions"), ("image_url", "caption"), ("URL", "TEXT"), ("url", "text")])
def test_the_usual_names_of_the_columns(tmp_path: Path, url: str, text: str) -> None:
    found = items(write(tmp_path / "x.parquet", [{text: "a dog", url: "http://a.example/x", "WIDTH": 300}]))
    assert found["http://a.example/x"].captions == ("a dog",)
    assert json.loads(found["http://a.example/x"].extra) == {"WIDTH": 300}


def test_a_list_of_captions_may_stand_in_one_row(tmp_path: Path) -> None:
    found = items(write(tmp_path / "x.jsonl", [{"url": "http://a.example/x", "captions": ["one", "two", ""]}]))
    assert found["http://a.example/x"].captions == ("one", "two")


@pytest.mark.parametrize("name", ["key", "id"])
def test_a_key_column_gives_the_keys(tmp_path: Path, name: str) -> None:
    rows = [{name: i, "url": f"http://a.example/{i // 2}", "text": str(i)} for i in range(4)]
    found = items(write(tmp_path / "x.parquet", rows))
    assert {key: item.image for key, item in found.items()} == {str(i): f"http://a.example/{i // 2}" for i in range(4)}


def test_one_key_for_two_urls_is_refused(tmp_path: Path) -> None:
    rows = [{"key": "k", "url": f"http://a.example/{i}", "text": "x"} for i in range(2)]
    with pytest.raises(ValueError, match=r"x.csv line 3: the key 'k' has another URL before"):
        items(write(tmp_path / "x.csv", rows))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://a.example/x", "bad_scheme"),
        ("file:///etc/passwd", "bad_scheme"),
        ("images/1.jpg", "bad_url"),
        ("http://", "bad_url"),
        ("http://user:secret@a.example/", "bad_url"),
        ("http://127.1/x", "bad_url"),
        ("", "bad_url"),
        (None, "bad_url"),
        (7, "bad_url"),
        ("http://a.example/\ud800", "bad_url"),
    ],
)
def test_a_url_that_is_none_gets_a_verdict_and_not_an_exception(tmp_path: Path, url: Any, code: str) -> None:
    found = list(
        items(write(tmp_path / "x.jsonl", [{"url": url, "text": "x"}, {"url": "http://b.example/", "text": "y"}])).values()
    )
    assert [item.verdict and (item.verdict.stage, item.verdict.code) for item in found] == [("list", code), None]
    assert found[0].key
    json.dumps(found[0].to_row()).encode()
    pa.array([found[0].image, found[0].key])


def test_a_folder_and_a_brace_range_are_read_in_order(tmp_path: Path) -> None:
    for i in range(12):
        write(tmp_path / f"part-{i:02}.parquet", [{"url": f"http://a.example/{i}", "text": "x"}])
    every = [f"http://a.example/{i}" for i in range(12)]
    assert list(items(tmp_path)) == every
    assert list(items(tmp_path / "part-{03..05}.parquet")) == every[3:6]
    with pytest.raises(FileNotFoundError, match=r"part-12.parquet"):
        open_source(tmp_path / "part-{10..12}.parquet", "url_list")
    with pytest.raises(ValueError, match="a brace without its pair"):
        open_source(tmp_path / "part-{10..12.parquet", "url_list")


@pytest.fixture
def memory() -> Iterator[UPath]:
    folder = UPath("memory://url-list-test")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    folder.fs.rm(folder.path, recursive=True)


def test_lists_are_read_from_object_stores(memory: UPath) -> None:
    write(memory / "a.parquet", ROWS)
    write(memory / "b.csv", [{"url": "http://b.example/", "text": "x"}])
    assert set(items(memory)) == {ROWS[0]["url"], ROWS[1]["url"], "http://b.example/"}
    assert set(items(memory / "{b,b}.csv")) == {"http://b.example/"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"url": "http://a.example/", "capton": "x"}], "the columns url, capton; expected a list of URLs"),
        ([{"url": "http://a.example/", "text": 3}], "the column `text` has 3, which is no text"),
        ([{"url": "http://a.example/", "text": "x", "key": ""}], "x.jsonl line 1 has no key"),
        ([{"url": "http://a.example/", "text": "x", "key": None}], "the column `key` has None"),
        ([{"url": "http://a.example/", "text": "x", "split": name} for name in ("train", "val")], "several splits"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_with_its_place(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    write(tmp_path / "x.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        list(open_source(tmp_path).items())


def test_a_table_of_images_that_also_names_their_urls_is_a_captions_table(tmp_path: Path) -> None:
    write(tmp_path / "captions.csv", [{"image": "a.jpg", "caption": "x", "url": "http://a.example/"}])
    assert isinstance(open_source(tmp_path), CaptionsTable)


def test_a_worker_gets_a_list_without_its_rows(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "x.parquet", [{"url": f"http://a.example/{i}", "text": "x"} for i in range(10_000)]))
    assert len(list(source.items())) == 10_000
    assert len(pickle.dumps(source)) < 1_000
    assert pickle.loads(pickle.dumps(source)) == source
    with pytest.raises(OSError, match="downloaded and not read"):
        source.read("http://a.example/1")
