"""What a row of a corpus is (`sightline/1`), and what a rejected input is.

The order of the columns is part of the format: digests run over it. A row's `uid` comes from its content alone (image
bytes and captions), so equal pairs share it wherever they lie; a *row* is (shard, row).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import Any

import pyarrow as pa

from sightline.pipelines.corpus.digests import uid

FORMAT = "sightline/1"
BATCH_ROWS, BATCH_BYTES = 256, 64 * 2**20  # a record batch ends with the row that reaches one of these
SPLIT = "split"  # the key in `extra` under which a row's split stands
FILTER = "filter"  # the stage of inputs that were left out on purpose; every other stage is an error
STAGES = (FILTER, "list", "fetch", "read", "decode", "mask", "encode")
IGNORE = 255  # the value of mask pixels that belong to no class

# large_binary: 32-bit offsets overflow at 2 GiB. Plain strings: dictionaries may not change between batches of a file.
SCHEMA = pa.schema(
    [
        pa.field("uid", pa.binary(16), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("image", pa.large_binary(), nullable=False),
        pa.field("format", pa.string(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("captions", pa.list_(pa.string())),
        pa.field("labels", pa.list_(pa.int32())),
        pa.field("mask", pa.large_binary()),
        pa.field("source", pa.string()),
        pa.field("sha256", pa.binary(32)),
        pa.field("extra", pa.string()),
    ]
)
BYTES = ("image", "mask")

# The sidecar repeats every column but the bytes, for statistics and filters that touch no image.
SIDECAR_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        *(field for field in SCHEMA if field.name not in BYTES),
        pa.field("nbytes", pa.int64(), nullable=False),
        pa.field("mask_nbytes", pa.int64()),
        pa.field("aspect", pa.float32(), nullable=False),
    ]
)

ERRORS_SCHEMA = pa.schema(
    [
        pa.field("plan_row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("code", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
        pa.field("http_status", pa.int32()),
        pa.field("nbytes", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Row:
    """One image with what is known about it, in the order of the columns.

    Attributes:
        uid: 16 bytes, from the image and the captions.
        key: the name that its source gave it.
        image: the encoded bytes.
        format: the codec's name in lower case, e.g. `jpeg`.
        width, height: in pixels, after EXIF orientation.
        captions: all of them, in their source's order.
        labels: class ids; the manifest has their names.
        mask: a PNG label map of the image's size, `IGNORE` where there is no class; None where there is no mask.
        source: where the image came from, relative to the ingested folder.
        sha256: 32 bytes, of `image`.
        extra: a JSON object with whatever else the source said, as `canonical_json` writes it.
    """

    uid: bytes
    key: str
    image: bytes | memoryview
    format: str
    width: int
    height: int
    captions: tuple[str, ...]
    labels: tuple[int, ...]
    mask: bytes | memoryview | None
    source: str
    sha256: bytes
    extra: str


def make_row(
    *,
    key: str,
    image: bytes,
    format: str,
    width: int,
    height: int,
    captions: tuple[str, ...] = (),
    labels: tuple[int, ...] = (),
    mask: bytes | None = None,
    source: str = "",
    extra: str = "{}",
) -> Row:
    """A row with its digests filled in."""
    digest = sha256(image).digest()
    identity = uid(digest, captions)
    return Row(identity, key, image, format, width, height, captions, labels, mask, source, digest, extra)


@dataclass(frozen=True)
class Rejected:
    """An input that became no row, and why.

    Attributes:
        plan_row: its position in the plan.
        key, source: as a row would have them.
        stage: where it ended: `filter` (left out on purpose), `list`, `fetch`, `read`, `decode`, `mask` or `encode`.
        code: a short stable reason, to count by.
        message: the reason for a person.
        http_status: of the answer, where it was fetched.
        nbytes: how many bytes were read, where some were.
    """

    plan_row: int
    key: str
    source: str
    stage: str
    code: str
    message: str
    http_status: int | None = None
    nbytes: int | None = None


ROW_FIELDS = tuple(field.name for field in fields(Row))
assert tuple(SCHEMA.names) == ROW_FIELDS


def canonical_json(value: Any) -> str:
    """JSON with one spelling for each value: sorted keys, no spaces, text as it is.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a value has no JSON form.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
