"""Each kind of source against an independent reading of the same files; on a disk, in memory and in S3; no Ray."""

from __future__ import annotations

import csv
import io
import json
import pickle
import sys
import tarfile
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.ingest.sources.captions_table import CaptionsTable
from sightline.pipelines.ingest.sources.coco import Coco
from sightline.pipelines.ingest.sources.detect import KINDS, open_source
from sightline.pipelines.ingest.sources.flickr_tokens import FlickrTokens
from sightline.pipelines.ingest.sources.item import ITEM_SCHEMA, Item, Source
from sightline.pipelines.ingest.sources.mask_folder import MaskFolder
from sightline.pipelines.ingest.sources.other_corpus import OtherCorpus
from sightline.pipelines.ingest.sources.parquet import ParquetFiles
from sightline.pipelines.ingest.sources.webdataset import WebDataset
from tests.pipelines.test_ingest_sources import items, tree

# Composed and decomposed forms are different keys and different captions, and stay what they are.
NFC, NFD = (unicodedata.normalize(form, "Một cậu bé, đang đá bóng") for form in ("NFC", "NFD"))


def codes(found: Mapping[str, Item]) -> dict[str, str]:
    return {key: item.verdict.code for key, item in found.items() if item.verdict}


def extra(item: Item) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(item.extra)
    return value


def tar(members: list[tuple[str, bytes | str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def gzipped(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, mtime=0)


def put(place: Any, files: Mapping[str, bytes | str]) -> Any:
    """Files below a place of any file system."""
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def bytes_of(source: Source) -> dict[str, bytes]:
    """Every readable image by key, read as a worker does: by a source that travelled."""
    worker = pickle.loads(pickle.dumps(source))
    return {item.key: worker.read(item.image) for item in source.items() if item.verdict is None}


@pytest.fixture(params=["disk", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A folder on each kind of file system."""
    if request.param == "disk":
        return tmp_path
    base = f"memory://{uuid4().hex}" if request.param == "memory" else request.getfixturevalue("s3")()
    return UPath(base) / "some folder" / "source"


# --- any file system


def test_every_kind_reads_the_same_from_every_file_system(place: Any) -> None:
    """References and items do not say where a source lies, so they must be those of a plain folder."""
    names = [f"{NFC}.jpg", f"{NFD}.jpg", "a b#c?.jpg"]
    images = {name: name.encode() for name in names}
    table = "image,caption\n" + "".join(f'"{name}","{NFD}"\n' for name in names)
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": 1, "image_id": 0, "caption": NFD}],
    }
    layouts: dict[str, dict[str, bytes | str]] = {
        "captions_table": {"captions.csv": table, **{f"images/{name}": data for name, data in images.items()}},
        "class_folder": {f"val/cat/{name}": data for name, data in images.items()} | {"train/dog/1.jpg": b"1"},
        "coco": {"annotations/captions_val2017.json": json.dumps(coco), **{f"val2017/{n}": d for n, d in images.items()}},
        "flickr_tokens": {"x.token.txt": "".join(f"{n}#0\t{NFD}\n" for n in names), **images},
        "mask_folder": {f"images/{n}": d for n, d in images.items()} | {f"masks/{n[:-4]}.png": b"m" for n in names},
        "webdataset": {"0.tar": tar(list(images.items())), "1.tar.gz": gzipped(tar([("z.jpg", b"z")]))},
        "parquet": {"x.parquet": parquet([{"image": data, "key": name, "caption": NFD} for name, data in images.items()])},
    }
    for kind, files in layouts.items():
        source = open_source(str(put(place / kind, files)))
        assert source.kind == kind
        found = items(source)
        assert not codes(found)
        assert {item.key.rpartition("/")[2] for item in found.values()} >= set(names) or kind == "webdataset"
        assert set(bytes_of(source).values()) >= set(images.values())
        if kind in ("captions_table", "flickr_tokens", "parquet"):
            assert {item.captions for item in found.values()} == {(NFD,)}


def test_a_source_in_s3_is_listed_by_few_calls(s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    root = UPath(s3()) / "photos"
    put(root, {"captions.csv": "image,caption\n" + "".join(f"{i}.jpg,x\n" for i in range(40))})
    put(root, {f"images/{i}.jpg": b"x" for i in range(40)})
    calls: list[str] = []
    from aiobotocore.client import AioBaseClient

    async_seen = AioBaseClient._emit_api_params

    async def async_record(self: Any, api_params: Any, operation_model: Any, context: Any) -> Any:
        calls.append(operation_model.name)
        return await async_seen(self, api_params, operation_model, context)

    monkeypatch.setattr(AioBaseClient, "_emit_api_params", async_record)
    assert len(items(open_source(str(root)))) == 40
    assert 0 < len(calls) < 40


def test_what_cannot_be_reached_is_one_sentence(s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    s3()
    with pytest.raises(FileNotFoundError, match=r"there is no s3://no-such-bucket/x; check the bucket's"):
        open_source("s3://no-such-bucket/x")
    with pytest.raises(ValueError, match="no file system is known"):
        open_source("nope://bucket/x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "sightline\[gcs\]"'):
        open_source("gs://bucket/x")


@pytest.mark.parametrize(("error", "kind", "said"), [
    (PermissionError("Forbidden"), PermissionError, "no permission to read s3://.*; check the credentials"),
    (RuntimeError("Could not connect\nto the endpoint"), OSError, r"cannot read s3://.* \(RuntimeError: Could not connect to the"),
])  # fmt: skip
def test_a_refusal_or_an_outage_is_one_sentence(
    s3: Callable[[], str], monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], said: str
) -> None:
    from s3fs import S3FileSystem

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(S3FileSystem, "info", refuse)
    with pytest.raises(kind, match=said):
        open_source(s3())


def test_a_plan_can_hold_every_item(tmp_path: Path) -> None:
    put(tmp_path, {"0.tar": tar([("a.jpg", b"a"), ("a.cls", "3")])})
    (item,) = items(open_source(tmp_path)).values()
    assert ITEM_SCHEMA.names[-1] == "block"
    (row,) = pa.Table.from_pylist([item.to_row()], schema=ITEM_SCHEMA).to_pylist()
    assert Item.from_row(row) == item
    assert item.block == "0.tar"


# --- COCO


def test_coco_json_is_what_its_files_say(shared_data: Path) -> None:
    folder = shared_data / "coco_json"
    source = open_source(folder)
    assert isinstance(source, Coco)
    captions, objects = (json.loads((folder / f"{name}_val2017.json").read_bytes()) for name in ("captions", "instances"))
    found = items(source)
    assert set(found) == {image["file_name"] for image in captions["images"]}
    assert source.classes() == sorted((c["id"], c["name"]) for c in objects["categories"])
    for image in objects["images"]:
        item = found[image["file_name"]]
        of_image = [a for a in objects["annotations"] if a["image_id"] == image["id"]]
        texts = sorted((a["id"], a["caption"]) for a in captions["annotations"] if a["image_id"] == image["id"])
        assert item.captions == tuple(text for _, text in texts)
        assert set(item.labels) == {a["category_id"] for a in of_image}
        assert {thing["id"]: thing["bbox"] for thing in extra(item).get("objects", [])} == {a["id"]: a["bbox"] for a in of_image}
        assert (extra(item)["split"], extra(item)["id"]) == ("val", image["id"])
        assert source.read(item.image) == (folder / "images" / image["file_name"]).read_bytes()
    assert sum(not item.labels for item in found.values()) == 1


def coco(tmp_path: Path, **files: Any) -> dict[str, Item]:
    tree(tmp_path, {f"{name}.json": json.dumps(data) for name, data in files.items()})
    return items(Coco.open(tmp_path))


def test_coco_splits_are_the_ends_of_the_files_names(tmp_path: Path) -> None:
    tree(tmp_path, {"train2017/1.jpg": b"1", "val2017/2.jpg": b"22"})
    one, two = ({"images": [{"id": i, "file_name": f"{i}.jpg"}], "annotations": []} for i in (1, 2))
    found = coco(tmp_path, captions_train2017=one, captions_val2017=two)
    assert {key: (extra(item)["split"], item.image) for key, item in found.items()} == {
        "1.jpg": ("train", "train2017/1.jpg"),
        "2.jpg": ("val", "val2017/2.jpg"),
    }


@pytest.mark.parametrize(("change", "said"), [
    ({"annotations": [{"id": 1, "image_id": 9, "caption": "x"}]}, "of the image 9, which `images` lacks"),
    ({"annotations": [{"id": 1, "image_id": 1, "caption": 7}]}, "caption 7, which is no text"),
    ({"annotations": [{"id": 1, "image_id": 1, "category_id": 3}]}, "category 3; `categories` lacks it"),
    ({"images": [{"id": 1}]}, "a `file_name`"),
    ({"images": [{"id": 1, "file_name": "a"}] * 2}, "the id 1 to two images"),
    ({"images": 3}, "no list of objects `images`"),
    ({"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}, "key 'a' occurs twice, in captions_x.json .image 1."),
])  # fmt: skip
def test_coco_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        coco(tmp_path, captions_x={"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], **change})


# --- Flickr


def test_flickr_tokens_are_read_line_by_line(tmp_path: Path) -> None:
    text = f"b.jpg#1\tsecond\nb.jpg#0\t{NFD} \u2028 x\r\na.jpg#0\tone\n2258277193_586949ec62.jpg.1#0\tgone\n"
    lists = {"Flickr_8k.trainImages.txt": "a.jpg\n", "Flickr_8k.devImages.txt": "b.jpg\nc.jpg\n"}
    tree(tmp_path / "Flickr8k_text", {"Flickr8k.token.txt": text, "Flickr8k.lemma.token.txt": "b.jpg#0\tx\n", **lists})
    tree(tmp_path / "Flicker8k_Dataset", {f"{name}.jpg": name.encode() for name in "abc"})
    source = open_source(tmp_path)
    assert isinstance(source, FlickrTokens)
    found = items(source)
    assert found["b.jpg"].captions == (f"{NFD} \u2028 x", "second")
    assert {key: extra(item).get("split") for key, item in found.items() if not item.verdict} == {
        "a.jpg": "train", "b.jpg": "val", "c.jpg": "val",
    }  # fmt: skip
    assert codes(found) == {"2258277193_586949ec62.jpg.1": "missing"}
    assert items(open_source(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt")) == found


@pytest.mark.parametrize(("text", "said"), [
    ("a.jpg#0 no tab\n", "line 1 is not"),
    ("a.jpg\tx\n", "line 1 is not"),
    ("a.jpg#0\tx\na.jpg#0\ty\n", "line 2 gives 'a.jpg#0' a second time"),
])  # fmt: skip
def test_a_token_file_of_another_form_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        items(open_source(tree(tmp_path, {"x.token": text})))


# --- WebDataset


def test_samples_are_grouped_by_key_also_when_scattered(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("d/a.jpg", b"image a"), ("b.txt", NFD), ("d/a.json", '{"caption": "from json", "url": "u"}'), ("b.PNG", b"image b"),
        ("d/a.cls", "7\n"), ("b.json", '{"caption": "not this", "n": 1}'), ("b.mask.png", b"mask b"), ("c.webp", b"image c"),
        ("c.captions.json", json.dumps([NFC, NFD])), ("c.txt", "not this"),
    ]  # fmt: skip
    (tmp_path / "x.tar").write_bytes(tar(members))
    source = WebDataset.open(tmp_path)
    found = items(source)
    assert {key: item.captions for key, item in found.items()} == {"d/a": ("from json",), "b": (NFD,), "c": (NFC, NFD)}
    assert {key: extra(item) for key, item in found.items()} == {"d/a": {"url": "u"}, "b": {"caption": "not this", "n": 1}, "c": {}}
    assert found["d/a"].labels == (7,)
    assert source.classes() == [(7, "7")]
    assert bytes_of(source) == {"d/a": b"image a", "b": b"image b", "c": b"image c"}
    assert found["b"].mask is not None
    assert source.read(found["b"].mask) == b"mask b"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_bytes_are_those_that_tarfile_finds(tmp_path: Path, suffix: str) -> None:
    long = "x" * 150  # beyond the 100 characters of a plain header
    members: list[tuple[str, bytes | str]] = [(f"{long}/{i}.jpg", bytes([i]) * (i * 300)) for i in range(20)]
    data = tar(members)
    (tmp_path / f"s.{suffix}").write_bytes(data if suffix == "tar" else gzipped(data))
    with tarfile.open(tmp_path / f"s.{suffix}") as archive:
        expected = {info.name.removesuffix(".jpg"): archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    assert bytes_of(open_source(tmp_path)) == expected


def test_a_brace_range_names_tars(place: Any) -> None:
    put(place, {f"s-{i:03d}.tar": tar([(f"{i}.jpg", str(i))]) for i in range(12)})
    assert set(items(open_source(f"{place}/s-{{003..005}}.tar"))) == {"3", "4", "5"}
    with pytest.raises(FileNotFoundError, match=r"has no s-012.tar \(1 of 3 tars are missing\)"):
        open_source(f"{place}/s-{{010..012}}.tar")


@pytest.mark.parametrize("cut", ["in a member", "in a header", "between members", "damaged header", "in the compression"])
def test_a_torn_tar_is_one_error_row_and_what_lay_before_is_kept(tmp_path: Path, cut: str) -> None:
    data = tar([(f"{i}.jpg", b"x" * 1000) for i in range(5)])  # 512 + 1,024 bytes a member
    damaged = data[:4608] + b"\xff" * 512 + data[5120:]
    ends = {"in a member": 5200, "in a header": 4700, "between members": 4608}
    torn = damaged if cut == "damaged header" else data[: ends.get(cut)]
    name = "x.tar"
    if cut == "in the compression":
        import gzip
        import random

        noise = tar([(f"{i}.jpg", random.Random(i).randbytes(100_000)) for i in range(5)])
        name, torn = "x.tar.gz", gzip.compress(noise)[:350_000]
    (tmp_path / name).write_bytes(torn)
    (tmp_path / "y.tar").write_bytes(tar([("y.jpg", b"y")]))
    source = open_source(tmp_path)
    found = items(source)
    assert codes(found) == {name: "torn"}
    assert set(found) == {"0", "1", "2", "y", name}
    assert set(bytes_of(source)) == {"0", "1", "2", "y"}


def test_keys_that_several_tars_share_are_told_apart_by_the_tar(tmp_path: Path) -> None:
    put(tmp_path, {"a.tar": tar([("0.jpg", b"a0"), ("1.jpg", b"a1")]), "b.tar": tar([("0.jpg", b"b0"), ("2.jpg", b"b2")])})
    source = open_source(tmp_path)
    assert bytes_of(source) == {"a.tar/0": b"a0", "1": b"a1", "b.tar/0": b"b0", "2": b"b2"}
    assert {extra(item).get("key") for item in source.items()} == {"0", None}


def test_members_of_no_sample_and_samples_without_an_image_are_rows_too(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "b.txt", "README", "._c.jpg", "d.jpg"]
    put(tmp_path, {"x.tar": tar([(name, b"x") for name in names])})
    assert codes(items(open_source(tmp_path))) == {
        "a": "several_images", "b": "no_image", "x.tar/README": "no_extension", "x.tar/._c.jpg": "sidecar_file",
    }  # fmt: skip


@pytest.mark.parametrize(("members", "said"), [
    ([("a.jpg", b"x"), ("a.jpg", b"y")], "'a.jpg' occurs twice in x.tar"),
    ([("a.jpg", b"x"), ("a.txt", b"\xff")], "x.tar/a.txt is not UTF-8"),
    ([("a.jpg", b"x"), ("a.json", b"{")], "x.tar/a.json is no JSON"),
    ([("a.jpg", b"x"), ("a.json", b"[]")], "x.tar/a.json is no JSON object"),
    ([("a.jpg", b"x"), ("a.json", b'{"caption": 3}')], "x.tar/a has the caption 3, which is no text"),
    ([("a.jpg", b"x"), ("a.json", b'{"x": NaN}')], "without a JSON form"),
    ([("a.jpg", b"x"), ("a.json", b'{"key": "a", "captions": [], "labels": 3, "extra": {}}')], "has the labels 3"),
])  # fmt: skip
def test_a_sample_that_makes_no_sense_is_refused_with_its_place(tmp_path: Path, members: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        items(open_source(put(tmp_path, {"x.tar": tar(members)})))


def test_class_names_are_numbered_or_looked_up(tmp_path: Path) -> None:
    put(tmp_path, {"x.tar": tar([("a.jpg", b"a"), ("a.cls", "dog"), ("b.jpg", b"b"), ("b.cls", "cat")])})
    assert open_source(tmp_path).classes() == [(0, "cat"), (1, "dog")]
    put(tmp_path, {"classes.csv": "id,name\n5,dog\n9,cat\n"})
    assert {key: item.labels for key, item in items(open_source(tmp_path)).items()} == {"a": (5,), "b": (9,)}


# --- Parquet and Arrow


def parquet(rows: list[dict[str, Any]], schema: pa.Schema | None = None, group: int = 2) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, row_group_size=group)
    return buffer.getvalue()


def arrow(rows: list[dict[str, Any]], stream: bool) -> bytes:
    buffer, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return buffer.getvalue()


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
    assert source.config() == {"left_out": ["blob"]}
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


# --- another corpus


def test_another_corpus_gives_its_rows_unchanged(digits: Corpus) -> None:
    source = open_source(digits.location)
    assert isinstance(source, OtherCorpus)
    assert source.classes() == [(entry["id"], entry["name"]) for entry in digits.manifest.classes]
    found = items(source)
    worker = pickle.loads(pickle.dumps(source))
    for row in map(digits.row, range(0, digits.rows, 17)):
        item = found[row.key]
        assert (item.captions, item.labels, item.extra, item.nbytes) == (row.captions, row.labels, row.extra, len(row.image))
        assert worker.read(item.image) == bytes(row.image)
        assert (item.mask and worker.read(item.mask)) == (None if row.mask is None else bytes(row.mask))
    assert len(found) == digits.rows


# --- masks


def test_camvid_is_pairs_of_images_and_masks_in_splits(shared_data: Path) -> None:
    folder = shared_data / "camvid"
    source = open_source(folder)
    assert isinstance(source, MaskFolder)
    found = items(source)
    assert set(found) == {path.relative_to(folder).as_posix() for path in folder.glob("*/images/*.jpg")}
    for key, item in found.items():
        split, _, name = key.split("/")
        assert (extra(item), item.verdict) == ({"split": split}, None)
        assert item.mask == f"{split}/masks/{name.removesuffix('.jpg')}.png"
        assert item.mask_nbytes == (folder / item.mask).stat().st_size
    with (folder / "classes.csv").open(encoding="utf-8") as file:
        assert source.classes() == [(int(row["id"]), row["name"]) for row in csv.DictReader(file)]


def test_masks_without_splits_and_classes_with_gaps(shared_data: Path) -> None:
    source = open_source(shared_data / "coco_semseg")
    assert isinstance(source, MaskFolder)
    assert len(items(source)) == 24
    assert not codes(items(source))
    assert len(source.classes()) == 130


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_said(tmp_path: Path) -> None:
    files = ["images/a.jpg", "masks/a.png", "images/b.jpg", "masks/c.png", "images/d.jpg", "images/d.png", "masks/d.png"]
    tree(tmp_path, dict.fromkeys([*files, "images/Thumbs.db"], b"x"))
    assert codes(items(open_source(tmp_path))) == {
        "images/b.jpg": "no_mask", "masks/c.png": "no_image", "images/Thumbs.db": "sidecar_file",
        "images/d.jpg": "several_images", "images/d.png": "several_images",
    }  # fmt: skip


# --- detection


def test_a_place_that_may_be_two_things_is_asked_about(tmp_path: Path) -> None:
    files = {"captions.csv": "image,caption\na.jpg,x\n", "a.jpg": b"a", "x.tar": tar([("t.jpg", b"t")])}
    put(tmp_path, files)
    with pytest.raises(ValueError, match=r"may be webdataset or captions_table; name the kind, e.g. --kind webdataset"):
        open_source(tmp_path)
    assert isinstance(open_source(tmp_path, "captions_table"), CaptionsTable)
    assert isinstance(open_source(tmp_path / "x.tar"), WebDataset)


def test_vietnamese_captions_survive_byte_for_byte(shared_data: Path) -> None:
    folder = shared_data / "vi_captions"
    expected: dict[str, list[str]] = {}
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            expected.setdefault(row["image"], []).append(row["caption"])
    assert {key: list(item.captions) for key, item in items(open_source(folder)).items()} == expected


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_forced_kind_says_what_it_misses(tmp_path: Path, kind: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
        open_source(tmp_path, kind)
