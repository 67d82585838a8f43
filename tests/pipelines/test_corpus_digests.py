"""The digests of `sightline/1`, computed once more by a plain loop that shares no code with the package."""

from __future__ import annotations

import hashlib
import io

import pyarrow as pa

from sightline.pipelines.corpus import digests
from sightline.pipelines.corpus.schema import SCHEMA, Row, make_row

ROW = make_row(
    key="cậu bé.jpg",
    image=b"image bytes",
    format="jpeg",
    width=3,
    height=2,
    captions=("Một cậu bé, đang đá quả bóng", ""),
    labels=(0, 7, 2**31 - 1),
    mask=b"mask bytes",
    source="images/cậu bé.jpg",
    extra='{"split":"train"}',
)


def length(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little")


def plain_uid(image: bytes, captions: list[str]) -> bytes:
    digest = hashlib.sha256(b"sl-uid-1")
    digest.update(length(b"x" * 32) + hashlib.sha256(image).digest())
    for caption in captions:
        digest.update(length(caption.encode("utf-8")) + caption.encode("utf-8"))
    return digest.digest()[:16]


def plain_row(row: Row) -> bytes:
    captions = b""
    for caption in row.captions:
        captions += length(caption.encode("utf-8")) + caption.encode("utf-8")
    labels = b""
    for label in row.labels:
        labels += label.to_bytes(4, "little")
    columns = [
        row.uid,
        row.key.encode("utf-8"),
        bytes(row.image),
        row.format.encode("utf-8"),
        row.width.to_bytes(4, "little"),
        row.height.to_bytes(4, "little"),
        captions,
        labels,
        None if row.mask is None else bytes(row.mask),
        row.sha256,
        row.extra.encode("utf-8"),
    ]
    whole = b""
    for column in columns:
        whole += b"\xff" * 8 if column is None else length(column) + column
    return hashlib.sha256(whole).digest()


def plain_root(shards: list[list[bytes]]) -> str:
    contents = [hashlib.sha256(b"sl-shard-1" + b"".join(rows)).digest() for rows in shards]
    starts = range(0, len(contents), 1024)
    pages = [hashlib.sha256(b"".join(contents[start : start + 1024])).digest() for start in starts]
    return hashlib.sha256(b"sl-root-1" + b"".join(pages)).hexdigest()


def plain_fingerprint(rows: list[bytes]) -> int:
    total = 0
    for row in rows:
        total += int.from_bytes(hashlib.sha512(row).digest(), "little")
    return total % 2**512


def test_a_uid_is_made_of_the_image_and_the_captions() -> None:
    assert ROW.uid == plain_uid(b"image bytes", list(ROW.captions))
    assert ROW.sha256 == hashlib.sha256(b"image bytes").digest()


def test_a_row_digest_covers_every_column_but_the_source() -> None:
    assert digests.row_digest(ROW) == plain_row(ROW)
    changes = {
        "uid": b"0" * 16,
        "key": "another",
        "image": b"image byteS",
        "format": "png",
        "width": 2,
        "height": 3,
        "captions": ("Một cậu bé, đang đá quả bóng",),
        "labels": (0, 7),
        "mask": None,
        "sha256": b"0" * 32,
        "extra": "{}",
    }
    assert {*changes, "source"} == set(SCHEMA.names)
    different = {digests.row_digest(Row(**{**vars(ROW), name: value})) for name, value in changes.items()}
    assert len(different | {digests.row_digest(ROW)}) == len(changes) + 1
    assert digests.row_digest(Row(**{**vars(ROW), "source": "elsewhere"})) == digests.row_digest(ROW)


def test_neighbouring_captions_cannot_trade_letters() -> None:
    assert digests.uid(b"", ["ab", "c"]) != digests.uid(b"", ["a", "bc"])
    assert digests.uid(b"", ["ab"]) != digests.uid(b"", ["ab", ""])


def test_a_missing_mask_is_not_an_empty_one() -> None:
    without, empty = Row(**{**vars(ROW), "mask": None}), Row(**{**vars(ROW), "mask": b""})
    assert digests.row_digest(without) == plain_row(without)
    assert digests.row_digest(without) != digests.row_digest(empty)


def test_root_and_fingerprint_follow_their_definitions() -> None:
    shards = [[bytes([i, j]) * 16 for j in range(3)] for i in range(5)]
    contents = [digests.shard_content(rows) for rows in shards]
    assert digests.root_digest([digests.page_digest(contents)]).hex() == plain_root(shards)
    rows = [row for shard in shards for row in shard]
    assert digests.fingerprint(rows) == plain_fingerprint(rows)
    assert len(digests.fingerprint_hex(1)) == 128


def test_the_schema_is_the_contract() -> None:
    """The order of columns and their types are the format; a change is another format."""
    described = [f"{field.name}: {field.type}{'' if field.nullable else ' not null'}" for field in SCHEMA]
    assert described == [
        "uid: fixed_size_binary[16] not null",
        "key: string not null",
        "image: large_binary not null",
        "format: string not null",
        "width: int32 not null",
        "height: int32 not null",
        "captions: list<item: string>",
        "labels: list<item: int32>",
        "mask: large_binary",
        "source: string",
        "sha256: fixed_size_binary[32]",
        "extra: string",
    ]


def test_arrow_serialises_a_batch_as_it_did_when_the_format_was_made() -> None:
    """Shard files are named by their bytes: a pyarrow that writes others would not find its shards done."""
    batch = pa.RecordBatch.from_pylist([vars(ROW)], schema=SCHEMA)
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_batch(batch)
    expected = "c53bc1333306c19b9af8144a276ea5463c0190874d1df4718058bcca804fab10"
    assert hashlib.sha256(sink.getvalue()).hexdigest() == expected
