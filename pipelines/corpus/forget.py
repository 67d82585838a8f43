"""Forget rows: shards that hold them are written again without them, and a new generation names those.

The other shards stay as they are, and so do the order of the rows and the tables of errors. What was forgotten is kept in mind
as tombstones: salted digests of each row's uid and of its image's sha256. They tell whether a given row is one of them, and
name none. Older generations still hold the rows until `gc --purge`.

    tombstones/<digest12>.json   [{"salt": hex, "digests": [sha256(salt + uid or sha256), ...]}, ...]
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightline.pipelines.corpus.columns import COUNTS, columns, info_parts, read_sidecar, write_part
from sightline.pipelines.corpus.commit import Draft, commit, write_page
from sightline.pipelines.corpus.manifest import Manifest, Page, read_manifest, read_shards
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.rows import file_rows, on_disk
from sightline.pipelines.corpus.schema import Rejected
from sightline.pipelines.corpus.shards import ShardRecord, file_sha256, read_answers, write_files
from sightline.pipelines.corpus.store import Store

UID_BYTES, SHA256_BYTES = 16, 32
SCORED = {"scored", "null"}  # what a score counts in each shard: it can be counted again without computing the score


@dataclass(frozen=True)
class Tombstones:
    """What was forgotten: `identity in tombstones` for a row's uid, or its image's sha256. It travels to other processes."""

    sets: tuple[tuple[bytes, frozenset[bytes]], ...] = ()

    def __contains__(self, identity: bytes) -> bool:
        return any(sha256(salt + identity).digest() in digests for salt, digests in self.sets)

    def __bool__(self) -> bool:
        return bool(self.sets)

    def with_all(self, identities: Iterable[bytes]) -> Tombstones:
        (salt, digests), *rest = self.sets or ((secrets.token_bytes(16), frozenset()),)
        return Tombstones(((salt, digests | {sha256(salt + identity).digest() for identity in identities}), *rest))


@dataclass(frozen=True)
class Forgotten:
    """The new generation (or the one in which all was forgotten already), and what it cost.

    Attributes:
        manifest: of the generation.
        rows, shards: how many rows went, and how many shards were written again.
        columns_to_redo: columns that have no values for those shards now.
    """

    manifest: Manifest
    rows: int
    shards: int
    columns_to_redo: tuple[str, ...]


def forget(store: Store, identities: Iterable[str]) -> Forgotten:
    """Take out all rows with these uids or images' sha256s (hex).

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: one of them is no such name, or no row has it (nothing is written then), or a shard is damaged.
    """
    wanted = {parsed(text) for text in identities}
    if not wanted:
        raise ValueError("which rows? give uids or sha256s, or a file of them by --from")
    environment = read_manifest(store).environment
    done: dict[str, tuple[ShardRecord, Collection[int]]] = {}
    redo: list[str] = []

    def change(parent: Manifest | None) -> Draft | None:
        assert parent is not None
        done.clear()
        tombstones, shards = read_tombstones(store, parent.tombstones), read_shards(store, parent.pages)
        hits, names = locate(store, shards, wanted)
        unknown = sorted(identity.hex() for identity in wanted - names if identity not in tombstones)
        if unknown:
            others = f" (nor have {len(unknown) - 1:,} others)" if len(unknown) > 1 else ""
            raise ValueError(f"no row of {store.location} has the uid or sha256 {unknown[0]}{others}; see `sightline corpus why`")
        if not hits:
            return None
        for shard in shards:
            if shard.file in hits:
                done[shard.file] = without(store, shard, hits[shard.file]), hits[shard.file]
        redo[:] = carry_columns(store, Corpus(store, parent, shards), done)
        return Draft(
            "forget",
            [replaced(store, page, {file: new for file, (new, _) in done.items()}) for page in parent.pages],
            parent.plans,
            [(int(entry["id"]), str(entry["name"])) for entry in parent.classes],
            parent.retried,
            write_tombstones(store, tombstones.with_all(names)),
        )

    manifest = commit(store, change, environment)
    return Forgotten(manifest, sum(len(rows) for _, rows in done.values()), len(done), tuple(redo))


def parsed(text: str) -> bytes:
    """A uid or a sha256 from its hex digits."""
    try:
        identity = bytes.fromhex(text.strip())
    except ValueError:
        identity = b""
    if len(identity) not in (UID_BYTES, SHA256_BYTES):
        raise ValueError(f"{text!r} is neither a uid (32 hex digits) nor an image's sha256 (64 hex digits)")
    return identity


def locate(
    store: Store, shards: Iterable[ShardRecord], wanted: Collection[bytes]
) -> tuple[dict[str, frozenset[int]], frozenset[bytes]]:
    """The wanted rows of each shard that has any, and all uids and sha256s of these rows."""
    uids = pa.array([identity for identity in wanted if len(identity) == UID_BYTES], pa.binary(UID_BYTES))
    sha256s = pa.array([identity for identity in wanted if len(identity) == SHA256_BYTES], pa.binary(SHA256_BYTES))
    hits, names = {}, set[bytes]()
    for shard in shards:
        table = read_sidecar(store, shard, ["uid", "sha256"])
        found = pc.or_(pc.is_in(table["uid"], uids), pc.is_in(table["sha256"], sha256s))
        rows = pc.indices_nonzero(found)
        if len(rows):
            hits[shard.file] = frozenset(rows.to_pylist())
            taken = table.take(rows)
            names.update(taken["uid"].to_pylist(), taken["sha256"].to_pylist())
    return hits, frozenset(names)


def without(store: Store, shard: ShardRecord, rows: Collection[int]) -> ShardRecord:
    """Write a shard again, without some of its rows.

    Raises:
        ValueError: it is damaged: its bytes would get a valid digest.
    """
    copied = {shard.file: shard.sha256, shard.errors: shard.errors_sha256, shard.answers: shard.answers_sha256}
    for name, digest in copied.items():
        if name is not None:
            with on_disk(store, name) as path:
                if file_sha256(path) != digest:
                    remedy = f"see `sightline corpus verify {store.location}`"
                    raise ValueError(f"{name} is damaged and cannot be written again; {remedy}")
    with on_disk(store, shard.file) as path:
        kept = (row for i, row in enumerate(file_rows(path)) if i not in rows)
        gone, said = shard.forgotten + len(rows), read_answers(store, shard)
        return write_files(store, shard.plan, shard.index, chain(kept, rejections(store, shard)), gone, said)


def rejections(store: Store, shard: ShardRecord) -> Iterator[Rejected]:
    """A shard's table of errors."""
    if shard.errors is not None:
        with store.open(shard.errors) as file:
            yield from (Rejected(**row) for row in pq.read_table(file).to_pylist())


def replaced(store: Store, page: Page, new: Mapping[str, ShardRecord]) -> Page:
    """A page with some shards written again; itself where it has none of them."""
    shards = read_shards(store, [page])
    if not any(shard.file in new for shard in shards):
        return page
    return write_page(store, [new.get(shard.file, shard) for shard in shards])


def carry_columns(store: Store, before: Corpus, new: Mapping[str, tuple[ShardRecord, Collection[int]]]) -> list[str]:
    """Write the scores of the rows that stay beside the new shards; the names of the columns for which that cannot be done.

    A filter counts what each of its conditions costs, and a rule over all rows judges anew: both are quickly made again.
    """
    redo = []
    for info in columns(before):
        if not info.per_row or set(info.counts) != SCORED:
            redo.append(info.name)
            continue
        for part in info_parts(before, info):
            if part.shard.file not in new or store.size(part.file) is None:
                continue
            shard, gone = new[part.shard.file]
            with store.open(part.file) as file:
                table = pq.read_table(file)
            assert set(json.loads(table.schema.metadata[COUNTS])) == SCORED
            values = table["value"].take(pa.array([i for i in range(len(table)) if i not in gone], pa.int64())).combine_chunks()
            old, new_stem = (record.file.removeprefix("data/").removesuffix(".arrow") for record in (part.shard, shard))
            counts = {"scored": len(values) - values.null_count, "null": values.null_count}
            write_part(store, replace(part, shard=shard, file=part.file.replace(old, new_stem)), values, counts)
    return redo


def read_tombstones(store: Store, name: str | None) -> Tombstones:
    """The tombstones that a manifest names."""
    if name is None:
        return Tombstones()
    sets = json.loads(store.read(name))
    return Tombstones(tuple((bytes.fromhex(one["salt"]), frozenset(map(bytes.fromhex, one["digests"]))) for one in sets))


def write_tombstones(store: Store, tombstones: Tombstones) -> str | None:
    """Write tombstones under the name of their bytes; None where there are none."""
    if not tombstones:
        return None
    sets = [{"salt": salt.hex(), "digests": sorted(digest.hex() for digest in digests)} for salt, digests in tombstones.sets]
    data = json.dumps(sets).encode()
    name = f"tombstones/{sha256(data).hexdigest()[:12]}.json"
    store.replace(name, data)
    return name
