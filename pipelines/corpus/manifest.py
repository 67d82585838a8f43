"""Commit: a corpus exists from the moment when its manifest names every shard.

A generation is immutable and created once (`link` lets one writer win); `manifest.json`, a copy of the current one, is
replaced by rename at the very end. Before that, every named file must have its size, and in each shard rows + rejected
must equal the plan's rows: what runs the shards may drop some silently, this does not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from sightline.pipelines.corpus.digests import add_fingerprints, fingerprint_hex, page_digest, root_digest
from sightline.pipelines.corpus.plan import Plan
from sightline.pipelines.corpus.schema import FORMAT
from sightline.pipelines.corpus.shards import ShardRecord
from sightline.pipelines.corpus.store import STAGING, LocalStore

CURRENT = "manifest.json"
PAGE_SHARDS = 1_024


@dataclass(frozen=True)
class Page:
    """A file of at most `PAGE_SHARDS` shard records, named by its bytes; `digest` is over the shards' contents."""

    digest: str
    file: str
    shards: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """One generation of a corpus.

    Attributes:
        format: `sightline/1`.
        generation, parent: its number and its predecessor's (None for the first).
        plans: per plan its id, input digest and config digest.
        rows, bytes: rows kept, and the bytes of their shards.
        seen, rejected, codes: inputs, those that became no row, and these by stage and code.
        root, fingerprint: digests of all rows (hex).
        classes: `{"id": ..., "name": ...}` in order of id.
        pages: where the shard records are.
        environment: what wrote it; outside of the root.
    """

    format: str
    generation: int
    parent: int | None
    plans: list[dict[str, str]]
    rows: int
    bytes: int
    seen: int
    rejected: int
    codes: dict[str, int]
    root: str
    fingerprint: str
    classes: list[dict[str, Any]]
    pages: list[Page]
    environment: dict[str, Any]


def encode(manifest: Manifest) -> bytes:
    return (json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n").encode()


def decode(data: bytes) -> Manifest:
    fields = json.loads(data)
    return Manifest(**{**fields, "pages": [Page(**page) for page in fields["pages"]]})


def read_manifest(store: LocalStore) -> Manifest:
    """The current generation.

    Raises:
        FileNotFoundError: there is no corpus, or an unfinished one.
        ValueError: the corpus has another format.
    """
    try:
        data = store.read(CURRENT)
    except (FileNotFoundError, NotADirectoryError):
        if store.path(STAGING).is_dir():
            raise FileNotFoundError(
                f"{store.root} is an unfinished corpus: no {CURRENT}; end it with the `sightline ingest SOURCE DEST` that began it"
            ) from None
        raise FileNotFoundError(f"{store.root} is no corpus: no {CURRENT}; write one with `sightline ingest SOURCE DEST`") from None
    try:
        found = json.loads(data)["format"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{store.path(CURRENT)} is no manifest; ingest into a fresh folder") from None
    if found != FORMAT:
        raise ValueError(f"{store.root} has format {found!r}, and this version of Sightline reads {FORMAT!r}; ingest it again")
    return decode(data)


def read_shards(store: LocalStore, manifest: Manifest) -> list[ShardRecord]:
    """All shard records, in the corpus's order."""
    return [ShardRecord.from_json(fields) for page in manifest.pages for fields in json.loads(store.read(page.file))["shards"]]


def commit(
    store: LocalStore,
    plan: Plan,
    records: Mapping[int, ShardRecord],
    classes: Sequence[tuple[int, str]],
    environment: Mapping[str, Any],
) -> Manifest:
    """Check that nothing was lost, and make the plan's shards the corpus's first generation.

    Raises:
        FileExistsError: somebody else committed another corpus there meanwhile.
    """
    check_conservation(store, plan, records)
    shards = [records[index] for index in range(plan.shards)]
    pages = [write_page(store, shards[start : start + PAGE_SHARDS]) for start in range(0, len(shards), PAGE_SHARDS)]
    codes: Counter[str] = Counter()
    for shard in shards:
        codes.update(shard.codes)
    manifest = Manifest(
        format=FORMAT,
        generation=1,
        parent=None,
        plans=[{"id": plan.plan_id, "input_digest": plan.input_digest, "config_digest": plan.config_digest}],
        rows=sum(shard.rows for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
        seen=plan.rows,
        rejected=sum(shard.rejected for shard in shards),
        codes=dict(sorted(codes.items())),
        root=root_digest(bytes.fromhex(page.digest) for page in pages).hex(),
        fingerprint=fingerprint_hex(add_fingerprints(int(shard.fingerprint, 16) for shard in shards)),
        classes=[{"id": number, "name": name} for number, name in sorted(classes)],
        pages=pages,
        environment=dict(environment),
    )
    name = generation_name(manifest.generation)
    if not store.create(name, encode(manifest)):
        # A twin of this ingest was here, or this one died between the two writes below: its generation stands.
        manifest, mine = decode(store.read(name)), manifest
        if (manifest.root, manifest.plans) != (mine.root, mine.plans):
            raise FileExistsError(f"{store.root} holds another corpus by now; ingest into a fresh folder")
    store.replace(CURRENT, encode(manifest))
    store.clear_staging()
    return manifest


def check_conservation(store: LocalStore, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
    """Every chunk has a record, every record accounts for every row of its chunk, and every file is there."""
    absent = sorted(set(range(plan.shards)) - set(records))
    assert not absent, f"{len(absent)} of {plan.shards} shards were never reported, the first is {absent[0]}"
    assert len(records) == plan.shards, f"{len(records)} shards were reported, the plan has {plan.shards}"
    for index, record in records.items():
        assert (record.plan, record.index) == (plan.plan_id, index), f"a foreign record stands for shard {index}"
        expected = plan.chunk_rows(index)
        assert record.rows + record.rejected == record.planned == expected, f"shard {index}: {record} of {expected} rows"
        assert sum(record.codes.values()) == record.rejected, f"shard {index}: {record.codes} of {record.rejected}"
        missing = record.missing(store)
        assert missing is None, f"{missing} is not there, or has another size than when it was written"


def write_page(store: LocalStore, shards: Sequence[ShardRecord]) -> Page:
    data = json.dumps({"shards": [shard.to_json() for shard in shards]}).encode()
    name = f"manifests/pages/{sha256(data).hexdigest()[:12]}.json"
    store.replace(name, data)
    return Page(
        digest=page_digest(bytes.fromhex(shard.content) for shard in shards).hex(),
        file=name,
        shards=len(shards),
        rows=sum(shard.rows for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
    )


def generation_name(generation: int) -> str:
    return f"manifests/gen-{generation:06d}.json"
