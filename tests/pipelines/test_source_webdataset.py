"""WebDataset tars against an independent reading of the same files; no Ray."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.models.codec import FORMATS
from sightline.pipelines.corpus.plan import read_chunk
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.export.export import export
from sightline.pipelines.export.sample import extension
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions
from sightline.pipelines.ingest.sources.detect import open_source
from sightline.pipelines.ingest.sources.item import Item
from sightline.pipelines.ingest.sources.webdataset import WebDataset
from tests.corpora import finish_alone, ingest_alone
from tests.pipelines.sources import NFC, NFD, bytes_of, codes, extra, gzipped, items, put, tar


def test_samples_are_grouped_by_key_also_when_scattered(tmp_path: Path) -> None:
    members: list[tuple[str, bytes | str]] = [
        ("d/a.jpg", b"image a"), ("b.txt", NFD), ("d/a.json", '{"caption": "from json", "url": "u"}'), ("b.PNG", b"image b"),
        ("d/a.cls", "7\n"), ("b.json", '{"caption": "not this", "n": 1}'), ("b.mask.png", b"mask b"), ("c.webp", b"image c"),
        ("c.captions.json", json.dumps([NFC, NFD])), ("c.txt", "not this"),
    ]  # fmt: skip
    (tmp_path / "x.tar").write_bytes(tar(members))
    source = WebDataset.open(tmp_path)
    found = items(source)
    assert {key: item.captions for key, item in found.items()} == {
        "x.tar/d/a": ("from json",), "x.tar/b": (NFD,), "x.tar/c": (NFC, NFD),
    }  # fmt: skip
    assert {key: extra(item) for key, item in found.items()} == {
        "x.tar/d/a": {"key": "d/a", "url": "u"}, "x.tar/b": {"key": "b", "caption": "not this", "n": 1}, "x.tar/c": {"key": "c"},
    }  # fmt: skip
    assert found["x.tar/d/a"].labels == (7,)
    assert source.classes() == [(7, "7")]
    assert bytes_of(source) == {"x.tar/d/a": b"image a", "x.tar/b": b"image b", "x.tar/c": b"image c"}
    mask = found["x.tar/b"].mask
    assert mask is not None
    assert source.read(mask) == b"mask b"


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz"])
def test_bytes_are_those_that_tarfile_finds(tmp_path: Path, suffix: str) -> None:
    long = "x" * 150  # beyond the 100 characters of a plain header
    members: list[tuple[str, bytes | str]] = [(f"{long}/{i}.jpg", bytes([i]) * (i * 300)) for i in range(20)]
    data = tar(members)
    (tmp_path / f"s.{suffix}").write_bytes(data if suffix == "tar" else gzipped(data))
    with tarfile.open(tmp_path / f"s.{suffix}") as archive:
        expected = {f"s.{suffix}/{info.name[:-4]}": archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]
    assert bytes_of(open_source(tmp_path)) == expected


def test_a_brace_range_names_tars(place: Any) -> None:
    put(place, {f"s-{i:03d}.tar": tar([(f"{i}.jpg", str(i))]) for i in range(12)})
    assert set(items(open_source(f"{place}/s-{{003..005}}.tar"))) == {f"s-{i:03d}.tar/{i}" for i in (3, 4, 5)}
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
    samples = {f"{name}/0", f"{name}/1", f"{name}/2", "y.tar/y"}
    assert set(found) == samples | {name}
    assert set(bytes_of(source)) == samples


def test_a_key_is_a_function_of_its_tar_alone(tmp_path: Path) -> None:
    put(tmp_path, {"a.tar": tar([("0.jpg", b"a0"), ("1.jpg", b"a1"), ("1.json", b'{"key": "its own"}')])})
    alone = items(open_source(tmp_path))
    put(tmp_path, {"b.tar": tar([("0.jpg", b"b0"), ("2.jpg", b"b2")])})
    found = items(open_source(tmp_path))
    assert {key: found[key] for key in alone} == alone
    assert {key: extra(item)["key"] for key, item in found.items()} == {
        "a.tar/0": "0", "a.tar/1": "its own", "b.tar/0": "0", "b.tar/2": "2",
    }  # fmt: skip


OURS = {"captions": [], "labels": [], "extra": {}}


def test_a_sample_of_our_own_export_keeps_its_key_and_two_cannot_share_one(tmp_path: Path) -> None:
    ours = json.dumps({"key": "photos/a.jpg", **OURS})
    (item,) = items(open_source(put(tmp_path, {"x.tar": tar([("0.jpg", b"0"), ("0.json", ours)])}))).values()
    assert (item.key, item.extra) == ("photos/a.jpg", "{}")
    put(tmp_path, {"y.tar": tar([("7.jpg", b"7"), ("7.json", ours)])})
    with pytest.raises(ValueError, match=r"'photos/a.jpg' occurs twice, in x.tar/0 and in y.tar/7"):
        items(open_source(tmp_path))


def picture(format: str) -> bytes:
    if format == "PIXAR":  # Pillow only reads these
        header = bytearray(1024)
        header[:4] = b"\x80\xe8\0\0"
        struct.pack_into("<HHxxxxHH", header, 416, 4, 4, 14, 2)
        return bytes(header) + bytes(48)
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, format)
    return buffer.getvalue()


def test_a_row_of_every_format_that_we_decode_survives_an_export(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"cat/{format.lower()}": picture(format) for format in FORMATS}
    corpus = Corpus.open(ingest_alone(put(tmp_path / "photos", files), tmp_path / "corpus"))
    assert {corpus.row(i).format for i in range(corpus.rows)} == {format.lower() for format in FORMATS}
    export(corpus, str(tmp_path / "tars"), "webdataset")
    again = Corpus.open(ingest_alone(tmp_path / "tars", tmp_path / "again"))
    assert again.manifest.fingerprint == corpus.manifest.fingerprint


def test_a_file_of_every_format_that_we_decode_ends_as_other_programs_expect() -> None:
    known = Image.registered_extensions()
    assert {format: known.get(f".{extension(format.lower())}") for format in FORMATS} == {format: format for format in FORMATS}
    assert [extension(format) for format in ("jpeg", "tiff", "jpeg2000", "pixar", "unheard")] == [
        "jpg",
        "tif",
        "jp2",
        "pxr",
        "unheard",
    ]


def test_a_name_with_dots_is_told_where_a_samples_name_ends(tmp_path: Path) -> None:
    (item,) = items(open_source(put(tmp_path, {"x.tar": tar([("dotted.name.v2.jpg", b"x")])}))).values()
    assert item.verdict is not None
    assert "a sample's name ends at its first dot, and 'name.v2.jpg' follows it" in item.verdict.message


def test_members_of_no_sample_and_samples_without_an_image_are_rows_too(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "b.txt", "README", "._c.jpg", "d.jpg"]
    put(tmp_path, {"x.tar": tar([(name, b"x") for name in names])})
    assert codes(items(open_source(tmp_path))) == {
        "x.tar/a": "several_images", "x.tar/b": "no_image",
        "x.tar#README@3584+1": "no_extension", "x.tar#._c.jpg@4608+1": "sidecar_file",
    }  # fmt: skip


OWN = {"key": "a", **OURS}


@pytest.mark.parametrize(("members", "code", "said"), [
    ([("a.jpg", b"y")], "occurs_twice", "'a.jpg' occurs twice in x.tar"),
    ([("a.txt", b"\xff")], "text_not_utf8", "txt is not UTF-8 (byte 0)"),
    ([("a.cls", b"\xff")], "text_not_utf8", "cls is not UTF-8"),
    ([("a.json", b"{")], "no_json", "json is no JSON"),
    ([("a.json", b"[]")], "no_json", "json is no JSON object"),
    ([("a.json", b'{"x":' * 100_000)], "no_json", "recursion"),
    ([("a.json", b'{"x": NaN}')], "no_json", "without a JSON form"),
    ([("a.json", b'{"caption": 3}')], "no_text", "the caption 3 is no text"),
    ([("a.captions.json", b'["x", {}]')], "no_text", "the caption {} is no text"),
    ([("a.json", json.dumps(OWN | {"labels": 3}))], "bad_labels", "has the labels 3"),
    ([("a.json", json.dumps(OWN | {"labels": [-1]}))], "bad_labels", "has the labels [-1]; give a list of whole numbers from 0"),
    ([("a.json", json.dumps(OWN | {"labels": [True]}))], "bad_labels", "has the labels [True]"),
    ([("a.json", json.dumps(OWN | {"labels": [2**31]}))], "bad_labels", "has the labels [2147483648]"),
    ([("a.json", json.dumps(OWN | {"labels": ["\ud800"]}))], "text_not_utf8", "a label has a lone surrogate"),
    ([("a.json", b'{"caption": "\\ud800"}')], "text_not_utf8", "its captions has a lone surrogate"),
    ([("a.json", b'{"note": ["\\ud800"]}')], "text_not_utf8", "its extra has a lone surrogate"),
    ([("a.json", b'{"\\udcff": 1}')], "text_not_utf8", "its extra has a lone surrogate"),
])  # fmt: skip
def test_a_sample_that_makes_no_sense_is_one_error_row(tmp_path: Path, members: Any, code: str, said: str) -> None:
    data = tar([("a.jpg", b"x"), *members, ("b.jpg", b"b")])
    prepared = prepare(put(tmp_path / "tars", {"x.tar": data}), tmp_path / "corpus", IngestOptions())
    found = {row["key"]: Item.from_row(row) for row in read_chunk(prepared.store, prepared.plan, 0)}
    verdict = found.pop("a" if "OWN" in said or "label" in said else "x.tar/a").verdict
    assert verdict is not None
    assert (verdict.stage, verdict.code) == ("list", code)
    assert said in verdict.message
    assert {key: item.verdict for key, item in found.items()} == {"x.tar/b": None}


def test_a_message_about_labels_is_short_however_many_there_are(tmp_path: Path) -> None:
    data = tar([("a.jpg", b"x"), ("a.json", json.dumps(OWN | {"labels": [-1] * 100_000}))])
    (item,) = items(open_source(put(tmp_path, {"x.tar": data}))).values()
    assert item.verdict is not None
    assert len(item.verdict.message) < 200


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_a_member_whose_name_is_no_utf8_is_one_error_row_with_its_bytes_spelled_out(tmp_path: Path, format: int) -> None:
    names = ["a.jpg", "caf\xe9.jpg", "\xff/b.jpg"]
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars/x.tar", "w", format=format, encoding="latin-1") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(picture("PNG"))
            archive.addfile(info, io.BytesIO(picture("PNG")))
    prepared = prepare(tmp_path / "tars", tmp_path / "corpus", IngestOptions())
    found = {row["key"]: row["verdict"] and row["verdict"]["code"] for row in read_chunk(prepared.store, prepared.plan, 0)}
    (first, second) = sorted(key for key, code in found.items() if code == "name_not_utf8")
    assert first.startswith("x.tar#\\xff/b.jpg@") and second.startswith("x.tar#caf\\xe9.jpg@")
    assert finish_alone(prepared).rejected_by_code == {"list/name_not_utf8": 2}


def pax(*records: tuple[bytes, bytes]) -> bytes:
    """A tar of a.jpg, an extended header with these records before b.jpg, and b.jpg."""
    data = b""
    for name, value in records:
        length = next(n for n in range(1, 999) if n == len(f"{n} ") + len(name) + len(value) + 2)
        data += f"{length} ".encode() + name + b"=" + value + b"\n"
    extended = tarfile.TarInfo("extended")
    extended.type, extended.size = tarfile.XHDTYPE, len(data)
    whole = tar([("a.jpg", b"a")])
    header = extended.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % 512)
    return whole[:1024] + header + tar([("b.jpg", b"b")])


@pytest.mark.parametrize(("record", "code"), [
    ((b"path", b"caf\xe9.jpg"), "name_not_utf8"),
    ((b"GNU.sparse.map", b"a,b"), "torn"),
    ((b"size", b"9" * 25), "torn"),
])  # fmt: skip
def test_an_extended_header_of_nonsense_costs_its_member_and_what_follows(
    tmp_path: Path, record: tuple[bytes, bytes], code: str
) -> None:
    found = items(open_source(put(tmp_path, {"x.tar": pax(record)})))
    assert found["x.tar/a"].verdict is None
    assert list(codes(found).values()) == [code]


def test_a_key_with_a_lone_surrogate_is_printed(tmp_path: Path) -> None:
    data = tar([("a.jpg", b"x"), ("a.json", json.dumps(OWN | {"key": "\ud800"})), ("b.jpg", b"b")])
    prepared = prepare(put(tmp_path / "tars", {"x.tar": data}), tmp_path / "corpus", IngestOptions())
    keys = {row["key"] for row in read_chunk(prepared.store, prepared.plan, 0)}
    assert keys == {"\\ud800", "x.tar/b"}


def test_class_names_are_numbered_or_looked_up(tmp_path: Path) -> None:
    put(tmp_path, {"x.tar": tar([("a.jpg", b"a"), ("a.cls", "dog"), ("b.jpg", b"b"), ("b.cls", "cat")])})
    assert open_source(tmp_path).classes() == [(0, "cat"), (1, "dog")]
    put(tmp_path, {"classes.csv": "id,name\n5,dog\n9,cat\n"})
    assert {key: item.labels for key, item in items(open_source(tmp_path)).items()} == {"x.tar/a": (5,), "x.tar/b": (9,)}
