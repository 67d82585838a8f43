"""A generation of a corpus: what its manifest says, and how the current one is found.

A generation is immutable and created once. `manifest.json` is a copy of the current one for a quick start; whoever reads
it looks whether a later generation exists by now, so a writer that died between the two writes has committed, and one
that is late with the copy takes nothing back. A manifest lists pages, and pages list at most 1,024 shards each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from sightline.pipelines.corpus.schema import FORMAT
from sightline.pipelines.corpus.shards import ShardRecord
from sightline.pipelines.corpus.store import STAGING, Store, within

CURRENT = "manifest.json"
PAGE_SHARDS = 1_024
HEX64, PAGE_FILE = re.compile("[0-9a-f]{64}"), re.compile(r"manifests/pages/[0-9a-f]{12}\.json")


@dataclass(frozen=True)
class Page:
    """A file of at most `PAGE_SHARDS` shard records, named by its bytes; `digest` is over the shards' contents."""

    digest: str
    file: str
    shards: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class PlanFacts:
    """A plan that gave rows to the corpus: its id, what it was made of, how many inputs it had, and where these were."""

    id: str
    input_digest: str
    config_digest: str
    rows: int
    source: str = ""


@dataclass(frozen=True)
class Manifest:
    """One generation of a corpus.

    Attributes:
        format: `sightline/1`.
        generation, parent: its number and its predecessor's (None for the first).
        change: what made it of its parent: `ingest`, `append`, `retry`, `merge` or `forget`.
        plans: the plans whose rows it holds.
        rows, bytes: rows kept, and the bytes of their shards.
        seen, rejected, forgotten: inputs, those that became no row, and rows taken out since; seen = rows + rejected + forgotten.
        codes: the rejected by stage and code.
        retried: rejected inputs that a later plan took up again, by code; they count once, as that plan has them.
        root, fingerprint: digests of all rows (hex).
        classes: `{"id": ..., "name": ...}` in order of id.
        pages: where the shard records are.
        tombstones: the file of salted digests of forgotten rows; None where nothing was forgotten.
        parent_sha256: of the parent's bytes, so that history cannot change unnoticed; None for the first.
        environment: what wrote it; outside of the root.
    """

    format: str
    generation: int
    parent: int | None
    change: str
    plans: list[PlanFacts]
    rows: int
    bytes: int
    seen: int
    rejected: int
    forgotten: int
    codes: dict[str, int]
    retried: dict[str, int]
    root: str
    fingerprint: str
    classes: list[dict[str, Any]]
    pages: list[Page]
    tombstones: str | None = None
    parent_sha256: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def plan_ids(self) -> list[str]:
        return [plan.id for plan in self.plans]


def encode(manifest: Manifest) -> bytes:
    return (json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n").encode()


class OtherFormatError(ValueError):
    """A manifest is whole, and of another version of the format: nothing is wrong with it, and nothing may be done to its files."""


def decode(data: bytes, where: str) -> Manifest:
    """A manifest from its bytes.

    Raises:
        OtherFormatError: it is of another format.
        ValueError: it is none, or a damaged one.
    """
    try:
        fields = json.loads(data)
        found = fields["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{where} is no manifest; ingest into a fresh folder") from None
    if found != FORMAT:
        raise OtherFormatError(
            f"{where} has format {found!r}, and this version of Sightline reads {FORMAT!r}; update Sightline, or ingest again"
        )
    try:
        pages, plans = [Page(**page) for page in fields["pages"]], [PlanFacts(**plan) for plan in fields["plans"]]
        manifest = Manifest(**{**fields, "pages": pages, "plans": plans})
        TypeAdapter(Manifest).validate_json(data, strict=True)
        check_manifest(manifest)
        return manifest
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{where} is damaged, or of an unfinished version of Sightline; ingest into a fresh folder") from None


def check_manifest(manifest: Manifest) -> None:
    """What the types do not say.

    Raises:
        ValueError: a digest is none, a count is negative, a page has another name, or the parent is no predecessor.
    """
    pages, classes = manifest.pages, manifest.classes
    digests = [manifest.root, *(page.digest for page in pages)]
    counts = [manifest.rows, manifest.bytes, *(count for page in pages for count in (page.shards, page.rows, page.bytes))]
    if not (
        all(map(HEX64.fullmatch, digests))
        and re.fullmatch("[0-9a-f]{128}", manifest.fingerprint)
        and min(counts) >= 0
        and all(PAGE_FILE.fullmatch(page.file) for page in pages)
        and all(type(entry.get("id")) is int and isinstance(entry.get("name"), str) for entry in classes)
        and (manifest.parent is None or 0 < manifest.parent < manifest.generation)
    ):
        raise ValueError("damaged")


def generation_name(generation: int) -> str:
    return f"manifests/gen-{generation:06d}.json"


def revoked_name(generation: int) -> str:
    return f"manifests/gen-{generation:06d}.revoked"


def newest(store: Store) -> Manifest | None:
    """The current generation; None where nothing was ever committed.

    Raises:
        ValueError: the corpus has another format.
    """
    try:
        manifest = decode(store.read(CURRENT), f"{store.location}/{CURRENT}")
        number = manifest.generation
    except (FileNotFoundError, NotADirectoryError):
        manifest, number = None, 0
    while store.size(name := generation_name(number + 1)) is not None:
        manifest, number = decode(store.read(name), f"{store.location}/{name}"), number + 1
    return manifest


def read_manifest(store: Store) -> Manifest:
    """The current generation.

    Raises:
        FileNotFoundError: there is no corpus, or an unfinished one.
        ValueError: the corpus has another format.
    """
    manifest = newest(store)
    if manifest is not None:
        return manifest
    if STAGING in store.entries():
        raise FileNotFoundError(
            f"{store.location} is an unfinished corpus: no {CURRENT}; end it with the `sightline ingest SOURCE DEST` that began it"
        )
    raise FileNotFoundError(f"{store.location} is no corpus: no {CURRENT}; write one with `sightline ingest SOURCE DEST`")


def find_root(store: Store, root: str) -> Manifest:
    """The generation with a root hash, the newest of them.

    Raises:
        ValueError: no generation has it, or it was revoked.
    """
    manifest = current = read_manifest(store)
    while manifest.root != root:
        if manifest.parent is None:
            raise ValueError(f"{store.location} has root {current.root}, not {root}, and never had; name the corpus that was meant")
        name = generation_name(manifest.parent)
        child, manifest = manifest, decode(store.read(name), f"{store.location}/{name}")
        if manifest.generation != child.parent:  # or this might never end
            raise ValueError(f"{store.location}/{name} is damaged; see `sightline corpus verify {store.location}`")
    if store.size(revoked_name(manifest.generation)) is not None:
        raise ValueError(
            f"root {root} of {store.location} was revoked: a purge kept the current generation only; use root {current.root}"
        )
    return manifest


def read_shards(store: Store, pages: Sequence[Page]) -> list[ShardRecord]:
    """The shard records of pages, in the corpus's order.

    Raises:
        FileNotFoundError: a page is missing.
        ValueError: a page is damaged.
    """
    adapter = TypeAdapter(dict[str, list[ShardRecord]])
    records: list[ShardRecord] = []
    for page, data in zip(pages, store.read_all([page.file for page in pages]), strict=True):
        try:
            listed = adapter.validate_json(data, strict=True)["shards"]
            check_records(listed)
        except (ValueError, KeyError):
            raise ValueError(f"{store.location}/{page.file} is damaged; see `sightline corpus verify {store.location}`") from None
        records += listed
    return records


def check_records(records: Sequence[ShardRecord]) -> None:
    """What the types do not say: digests are such, names stay within the corpus, and counts are not negative."""
    for one in records:
        hashes = [one.sha256, one.content, one.sidecar_sha256, *filter(None, (one.errors_sha256, one.answers_sha256))]
        if not all(map(HEX64.fullmatch, hashes)) or not re.fullmatch("[0-9a-f]{128}", one.fingerprint):
            raise ValueError("a digest is none")
        if min(one.rows, one.rejected, one.forgotten, one.planned, *(size for _, size in one.files())) < 0:
            raise ValueError("a count is negative")
        for name, _ in one.files():
            within(name)
