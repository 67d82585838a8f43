"""Every kind of source is the same wherever it lies: on a disk, in memory and in S3; no Ray."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pyarrow as pa
import pytest
from upath import UPath

from sightline.pipelines.ingest.sources.captions_table import CaptionsTable
from sightline.pipelines.ingest.sources.detect import KINDS, open_source
from sightline.pipelines.ingest.sources.item import ITEM_SCHEMA, Item
from sightline.pipelines.ingest.sources.webdataset import WebDataset
from tests.pipelines.sources import NFC, NFD, bytes_of, codes, gzipped, items, parquet, put, tar

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


def test_a_web_servers_files_have_no_sizes_in_its_listing(tmp_path: Path) -> None:
    put(tmp_path, {"captions.csv": "image,caption\na.jpg,one\nb.jpg,two\nc.jpg,three\n", "a.jpg": b"1", "images/b.jpg": b"22"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        source = open_source(f"http://127.0.0.1:{server.server_port}/captions.csv")
        found = items(source)
        assert {key: item.nbytes for key, item in found.items()} == {"a.jpg": 1, "b.jpg": 2, "c.jpg": None}
        assert codes(found) == {"c.jpg": "missing"}
        assert source.read(found["b.jpg"].image) == b"22"
    finally:
        server.shutdown()
        server.server_close()


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
