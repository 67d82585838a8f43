"""Digests that say what a corpus holds, and nothing about who wrote it, where, when or with how many workers.

    lp(x)       = 8-byte little-endian length of x, then x
    uid         = sha256("sl-uid-1" + lp(sha256(image)) + lp(caption) + ...)[:16]
    row         = sha256(lp(column) of every column but `source`, in the schema's order)
    content     = sha256("sl-shard-1" + rows of the shard)
    page        = sha256(contents of <= 1,024 shards)
    root        = sha256("sl-root-1" + pages)
    fingerprint = sum of sha512(row) mod 2^512

In a row, text is UTF-8, an integer is 4 bytes little-endian, a list is the lp of each text or the 4 bytes of each
integer, and null is the length 2^64 - 1 with nothing behind it. The fingerprint ignores order and sharding, so it shows
that a merge or a re-shard lost nothing (by accident: it resists no adversary).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256, sha512
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # schema.py computes uids
    from sightline.pipelines.corpus.schema import Row

FINGERPRINT_BITS = 512
NULL = (2**64 - 1).to_bytes(8, "little")
Value = bytes | memoryview | str | int | Sequence[str] | Sequence[int] | None


def lp(data: bytes) -> bytes:
    """The bytes behind their length, so that neighbours cannot trade bytes."""
    return len(data).to_bytes(8, "little") + data


def uid(image_sha256: bytes, captions: Iterable[str]) -> bytes:
    """16 bytes that name a pair by its content."""
    return sha256(b"sl-uid-1" + lp(image_sha256) + b"".join(lp(text.encode()) for text in captions)).digest()[:16]


def encode(value: Value) -> bytes | memoryview | None:
    """A column's value as bytes; None for null."""
    if value is None or isinstance(value, bytes | memoryview):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int):
        return value.to_bytes(4, "little", signed=True)
    return b"".join(lp(item.encode()) if isinstance(item, str) else item.to_bytes(4, "little") for item in value)


def row_digest(row: Row) -> bytes:
    """32 bytes that name a row: all of it but where it came from."""
    digest = sha256()
    for name, value in vars(row).items():
        if name == "source":
            continue
        data = encode(value)
        digest.update(NULL if data is None else len(data).to_bytes(8, "little"))
        if data is not None:
            digest.update(data)  # not joined to its length: an image is not copied
    return digest.digest()


def shard_content(rows: Iterable[bytes]) -> bytes:
    """32 bytes that name a shard by its rows' digests, in order."""
    return sha256(b"sl-shard-1" + b"".join(rows)).digest()


def page_digest(contents: Iterable[bytes]) -> bytes:
    return sha256(b"".join(contents)).digest()


def root_digest(pages: Iterable[bytes]) -> bytes:
    return sha256(b"sl-root-1" + b"".join(pages)).digest()


def fingerprint(rows: Iterable[bytes]) -> int:
    """The sum over rows' digests; fingerprints of parts add up with `add_fingerprints`."""
    return add_fingerprints(int.from_bytes(sha512(row).digest(), "little") for row in rows)


def add_fingerprints(parts: Iterable[int]) -> int:
    return sum(parts) % 2**FINGERPRINT_BITS


def fingerprint_hex(value: int) -> str:
    return f"{value:0{FINGERPRINT_BITS // 4}x}"
