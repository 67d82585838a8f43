"""Parquet and Arrow files against an independent reading of the same files; no Ray."""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightline.pipelines.ingest.sources import arrow_files
from sightline.pipelines.ingest.sources.detect import open_source
from sightline.pipelines.ingest.sources.item import sound
from sightline.pipelines.ingest.sources.parquet import ParquetFiles
from tests.pipelines.sources import NFD, arrow, bytes_of, extra, items, parquet, put

HF_ROWS = [
    {
        "image": {"bytes": f"image {i}".encode(), "path": f"{i}.jpg"},
        "caption": [f"one {i}", NFD],
        "label": i % 3 - 1,
        "score": i / 2,
    }
    for i in range(7)
]


@pytest.mark.parametrize("form", ["parquet", "arrow file", "arrow stream"])
def test_hugging_face_rows_are_read_whole(place: Any, form: str) -> None:
    names = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    if form == "parquet":
        schema = pa.Table.from_pylist(HF_ROWS).schema.with_metadata({"huggingface": json.dumps(names)})
        put(place, {"data/train-00000-of-00001.parquet": parquet(HF_ROWS, schema)})
    else:
        put(place, {"data/train-00000-of-00001.arrow": arrow(HF_ROWS, form.endswith("stream"))})
    source = open_source(str(place))
    assert isinstance(source, ParquetFiles)
    found = items(source)
    assert bytes_of(source) == {f"{i}.jpg": f"image {i}".encode() for i in range(7)}
    for i, row in enumerate(HF_ROWS):
        item = found[f"{i}.jpg"]
        assert item.captions == tuple(row["caption"])  # type: ignore[arg-type]
        assert item.labels == (() if row["label"] == -1 else (row["label"],))
        assert extra(item) == {"score": row["score"], "split": "train"}
    assert source.classes() == ([(0, "cat"), (1, "dog")] if form == "parquet" else [(0, "0"), (1, "1")])
    assert len({item.block for item in found.values()}) == (4 if form == "parquet" else 1)


@pytest.mark.parametrize("held", [0, 2**30])
def test_a_row_group_is_the_same_in_memory_and_on_the_disk(place: Any, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files, "HELD_BYTES", held)
    put(place, {"x.parquet": parquet([{**row, "mask": b"m"} for row in HF_ROWS])})
    source = open_source(str(place))
    backwards = {key: source.read(item.image) for key, item in reversed(items(source).items())}
    assert backwards == {f"{i}.jpg": f"image {i}".encode() for i in range(7)}
    assert {source.read(str(item.mask)) for item in items(source).values()} == {b"m"}


def test_a_row_group_of_a_whole_file_takes_the_memory_of_a_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_files, "HELD_BYTES", 2**22)
    images = [random.Random(i).randbytes(2**17) for i in range(512)]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": images}), path, use_dictionary=False, row_group_size=len(images), write_batch_size=8)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.system_memory_pool())
    pa.set_memory_pool(pool)
    try:
        source = open_source(tmp_path)
        assert [source.read(f"x.parquet#{i}") == images[i] for i in (511, 0, 256)] == [True] * 3
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < sum(map(len, images)) / 2


def test_rows_without_a_unique_name_are_called_by_their_place(tmp_path: Path) -> None:
    rows = [{"jpg": b"1", "id": 4, "text": "x"}, {"jpg": b"2", "id": 4, "text": None}]
    found = items(open_source(put(tmp_path, {"x.parquet": parquet(rows)})))
    assert set(found) == {"x.parquet#0", "x.parquet#1"}
    assert {extra(item)["id"] for item in found.values()} == {4}


def test_a_label_that_is_a_number_is_an_id_whatever_classes_are_called(tmp_path: Path) -> None:
    rows = [{"image": b"1", "key": "a", "label": 0}, {"image": b"2", "key": "b", "label": 1}]
    source = open_source(put(tmp_path, {"x.parquet": parquet(rows), "classes.csv": "id,name\n0,1\n1,0\n"}))
    assert {key: item.labels for key, item in items(source).items()} == {"a": (0,), "b": (1,)}


def test_what_has_no_json_form_is_left_out_and_said(tmp_path: Path) -> None:
    rows = [{"image": b"1", "key": "a", "blob": b"x", "n": float("nan"), "list": [1, None]}]
    source = open_source(put(tmp_path, {"x.parquet": parquet(rows)}))
    assert source.config() == {"left_out": ["blob"], "key": "key"}
    assert extra(items(source)["a"]) == {"n": None, "list": [1, None]}


def test_an_image_without_bytes_is_an_oserror_of_its_row(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": None, "path": "a.jpg"}}, {"image": {"bytes": b"b", "path": "b.jpg"}}]
    source = open_source(put(tmp_path, {"x.parquet": parquet(rows)}))
    with pytest.raises(OSError, match=r"x.parquet#0 holds no bytes"):
        source.read("x.parquet#0")
    assert source.read("x.parquet#1") == b"b"


@pytest.mark.parametrize(("files", "said"), [
    ({"a": [{"image": b"1", "n": 1}], "b": [{"image": b"1", "n": "x"}]}, "'n' is int64 in a.parquet and string in b.parquet"),
    ({"a": [{"image": b"1"}], "b": [{"image": b"1", "n": 1}]}, "column 'n' is none in a.parquet and int64 in b.parquet"),
    ({"a": [{"image": b"1", "key": "k"}], "b": [{"image": b"2", "key": "k"}]}, "'k' occurs twice, in a.parquet#0 and in b.par"),
    ({"a": [{"image": b"1", "caption": 7}]}, "a.parquet#0 has the caption 7, which is no text"),
    ({"a": [{"image": b"1", "key": None}]}, "a.parquet#0 has the key None"),
    ({"a": [{"image": b"1", "label": 0.5}]}, "the label 0.5 is neither"),
])  # fmt: skip
def test_files_that_do_not_go_together_are_refused(tmp_path: Path, files: Any, said: str) -> None:
    put(tmp_path, {f"{name}.parquet": parquet(rows) for name, rows in files.items()})
    with pytest.raises(ValueError, match=said):
        items(open_source(tmp_path))


def broken(column: pa.Array) -> pa.Array:
    """A column of text in which a byte is no UTF-8, as writers that do not check leave it."""
    data = column.buffers()[2].to_pybytes().replace(b"?", b"\xff")
    return pa.Array.from_buffers(column.type, len(column), [None, column.buffers()[1], pa.py_buffer(data)])


@pytest.mark.parametrize("column", ["key", "caption", "label", "note"])
def test_a_row_whose_text_is_no_utf8_is_one_error_row(tmp_path: Path, column: str) -> None:
    texts = {name: [f"{name} 0", f"{name} 1"] for name in ("key", "caption", "label", "note")}
    texts[column][0] = "?"
    columns = {name: pa.array(values) for name, values in texts.items()}
    columns[column] = broken(columns[column])
    pq.write_table(pa.table({"image": [b"0", b"1"], **columns}), tmp_path / "x.parquet")
    first, second = map(sound, open_source(tmp_path).items())
    assert (first.key, first.verdict and first.verdict.code) == ("\\xff" if column == "key" else "key 0", "text_not_utf8")
    assert (second.key, second.captions, second.verdict) == ("key 1", ("caption 1",), None)


def test_a_captions_table_in_parquet_whose_text_is_no_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    put(tmp_path, {"a.jpg": b"a", "b.jpg": b"b"})
    table = pa.table({"image": ["a.jpg", "b.jpg"], "caption": broken(pa.array(["?", "x"]))})
    pq.write_table(table, tmp_path / "captions.parquet")
    found = [sound(item) for item in open_source(tmp_path).items()]
    assert [(item.key, item.verdict and item.verdict.code) for item in found] == [("a.jpg", "text_not_utf8"), ("b.jpg", None)]


def test_extra_json_with_a_lone_surrogate_is_one_error_row(tmp_path: Path) -> None:
    rows = [{"image": b"0", "key": "a", "extra": '{"x": "\\ud800"}'}, {"image": b"1", "key": "b", "extra": '{"x": "y"}'}]
    found = [sound(item) for item in open_source(put(tmp_path, {"x.parquet": parquet(rows)})).items()]
    assert [item.verdict and item.verdict.code for item in found] == ["text_not_utf8", None]


@pytest.mark.parametrize("depth", [300, 900, 100_000])
def test_extra_json_that_is_nested_too_deeply_costs_its_row_alone(
    tmp_path: Path, depth: int, request: pytest.FixtureRequest
) -> None:
    """Where it cannot even be read, it is text like any other."""
    request.addfinalizer(partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(1_000)  # Python's own; libraries that other tests import raise it
    rows = [{"image": b"0", "key": "a", "extra": '{"x":' * depth + "1" + "}" * depth}, {"image": b"1", "key": "b", "extra": "{}"}]
    found = items(open_source(put(tmp_path, {"x.parquet": parquet(rows)})))
    assert found["b"].verdict is None
    said = found["a"].verdict
    kept = extra(found["a"]) == {"extra": rows[0]["extra"]} if depth == 100_000 else '"x":1' in found["a"].extra
    assert kept if said is None else (said.code == "no_json" and "nested too deeply" in said.message)
    assert (said is None) == (depth != 900)
