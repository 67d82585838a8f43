"""What may be chosen about an ingest, how far it is, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import pyarrow.parquet as pq

from sightline.fetch.result import FetchOptions
from sightline.models.codec import MAX_PIXELS
from sightline.pipelines.corpus.manifest import Manifest, read_manifest, read_shards
from sightline.pipelines.corpus.shards import filtered
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.ingest.resize import Resize


@dataclass(frozen=True)
class IngestOptions:
    """What may be chosen.

    Attributes:
        kind: the kind of source, by name; None: found.
        shard_rows: inputs per shard; None: derived from their number.
        seed: of the rows' order.
        max_pixels: larger images are refused.
        resize: what is done to the pixels.
        fetch: how URLs are downloaded.
    """

    kind: str | None = None
    shard_rows: int | None = None
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    resize: Resize = field(default_factory=Resize)
    fetch: FetchOptions = field(default_factory=FetchOptions)


@dataclass(frozen=True)
class Progress:
    """How far an ingest is, in shards and inputs; `fresh_rows`, `fresh_bytes` (written) and `seconds` are of this run alone."""

    shards: int
    all_shards: int
    rows: int
    all_rows: int
    rejected: int
    fresh_rows: int
    fresh_bytes: int
    seconds: float


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        seen, kept, filtered, errors: inputs, rows, inputs left out on purpose, inputs that could not become rows.
        forgotten: rows taken out since.
        root, generation: of the corpus.
        images_per_s, seconds: of the run that finished it.
        rejected_by_code: filtered and errors by `stage/code`.
    """

    seen: int
    kept: int
    filtered: int
    errors: int
    forgotten: int
    root: str
    generation: int
    images_per_s: float
    seconds: float
    rejected_by_code: dict[str, int]

    @classmethod
    def of(cls, manifest: Manifest) -> IngestReport:
        left_out = filtered(manifest.codes)
        report = cls(
            seen=manifest.seen,
            kept=manifest.rows,
            filtered=left_out,
            errors=manifest.rejected - left_out,
            forgotten=manifest.forgotten,
            root=manifest.root,
            generation=manifest.generation,
            images_per_s=manifest.environment.get("images_per_s", 0.0),
            seconds=manifest.environment.get("seconds", 0.0),
            rejected_by_code=manifest.codes,
        )
        assert report.seen == report.kept + report.filtered + report.errors + report.forgotten, (
            f"the totals do not balance: {report}"
        )
        return report


def examples(location: str, tables: int = 64) -> dict[str, str]:
    """By `stage/code` one rejected input of a corpus and what was wrong with it, as far as its first errors tables tell."""
    store = open_store(location)
    found: dict[str, str] = {}
    names = (shard.errors for shard in read_shards(store, read_manifest(store).pages) if shard.errors is not None)
    for name in islice(names, tables):
        with store.open(name) as file:
            for row in pq.read_table(file, columns=["key", "stage", "code", "message"]).to_pylist():
                found.setdefault(f"{row['stage']}/{row['code']}", f"{row['key']}: {row['message']}")
    return found
