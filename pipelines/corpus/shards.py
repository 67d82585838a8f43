"""Writing shard i: all of it becomes visible under names made of its content, and its done record comes last.

A shard is an Arrow IPC file (uncompressed, so that readers map it), a Parquet sidecar without the bytes, a Parquet table
of what was rejected, and, where images were downloaded, one of what the servers said. The last is no part of any row: the
same bytes downloaded on another day are the same corpus. Data files never move: a shard counts once a manifest names it.
Whoever finds a done record whose files have their sizes need not do the shard again; a duplicate writer produces the same
names.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightline.pipelines.corpus.digests import fingerprint, fingerprint_hex, row_digest, shard_content
from sightline.pipelines.corpus.schema import (
    BATCH_BYTES,
    BATCH_ROWS,
    ERRORS_SCHEMA,
    FILTER,
    ROW_FIELDS,
    SCHEMA,
    SIDECAR_SCHEMA,
    Rejected,
    Row,
)
from sightline.pipelines.corpus.store import STAGING, Store

FILES = 4  # of a shard: rows, sidecar, errors, answers
ANSWERS_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in ("url", "etag", "last_modified", "date")),
    ]
)


@dataclass(frozen=True)
class Answer:
    """What a server said of an image: the URL after redirects, and header lines as they came."""

    key: str
    url: str
    etag: str | None
    last_modified: str | None
    date: str | None


@dataclass(frozen=True)
class ShardRecord:
    """What a manifest knows about a shard; also its done record.

    Attributes:
        plan, index: the plan's id and the chunk's number.
        planned: inputs of the chunk.
        rows: rows kept.
        rejected: inputs that became no row, filtered ones included.
        forgotten: rows taken out since it was first written; planned = rows + rejected + forgotten.
        codes: how many were rejected, by stage and code (`decode/truncated`).
        file: the Arrow file's name.
        bytes, sha256: of that file.
        content, fingerprint: digests of its rows (hex).
        sidecar, sidecar_bytes, sidecar_sha256: the Parquet file without the images' bytes.
        errors, errors_bytes, errors_sha256: the rejected inputs; None, 0 and None where there are none.
        answers, answers_bytes, answers_sha256: what servers said of downloaded images; None, 0 and None where there are none.
    """

    plan: str
    index: int
    planned: int
    rows: int
    rejected: int
    codes: dict[str, int]
    file: str
    bytes: int
    sha256: str
    content: str
    fingerprint: str
    sidecar: str
    sidecar_bytes: int
    sidecar_sha256: str
    errors: str | None
    errors_bytes: int
    errors_sha256: str | None
    forgotten: int = 0
    answers: str | None = None
    answers_bytes: int = 0
    answers_sha256: str | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ShardRecord:
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def files(self) -> Iterator[tuple[str, int]]:
        """The shard's files and their sizes."""
        yield self.file, self.bytes
        yield self.sidecar, self.sidecar_bytes
        if self.errors is not None:
            yield self.errors, self.errors_bytes
        if self.answers is not None:
            yield self.answers, self.answers_bytes


def write_shard(
    store: Store, plan: str, index: int, outcomes: Iterable[Row | Rejected], answers: Iterable[Answer] = ()
) -> ShardRecord:
    """Write shard `index` of a plan, a batch of rows at a time, and its done record."""
    record = write_files(store, plan, index, outcomes, answers=answers)
    name = done_name(plan, index)
    data = json.dumps(record.to_json()).encode()
    if not store.create(name, data):
        # Somebody was faster. It is the same shard, unless its bytes came from the network: then the first one counts.
        if (earlier := done_record(store, plan, index)) is not None:
            return earlier
        store.replace(name, data)
    return record


def write_files(
    store: Store, plan: str, index: int, outcomes: Iterable[Row | Rejected], forgotten: int = 0, answers: Iterable[Answer] = ()
) -> ShardRecord:
    """Write a shard's files; they count once a manifest names them. Of `answers`, looked at last, those about kept rows stay."""
    digests: list[bytes] = []
    sidecar: list[dict[str, Any]] = []
    rejected: list[Rejected] = []

    def kept() -> Iterator[Row]:
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                rejected.append(outcome)
                continue
            digests.append(row_digest(outcome))
            sidecar.append(sidecar_row(len(sidecar), outcome))
            yield outcome

    # Files are published side by side: a disk that flushes, or a bucket that takes one in, lets the others wait as long each.
    with store.temporary() as temporary, ThreadPoolExecutor(FILES) as pool:
        write_rows(temporary, kept())
        nbytes, sha256 = temporary.stat().st_size, file_sha256(temporary)
        name = f"{plan}/shard-{index:06d}-{sha256[:12]}"
        published = pool.submit(store.publish, temporary, f"data/{name}.arrow")
        errors = f"errors/{name}.parquet" if rejected else None
        reasons = [vars(item) for item in rejected]
        kept_keys = {row["key"] for row in sidecar}
        said = [vars(answer) for answer in answers if answer.key in kept_keys]
        log = f"meta/{name}.answers.parquet" if said else None
        meta = pool.submit(write_parquet, store, f"meta/{name}.parquet", sidecar, SIDECAR_SCHEMA)
        wrong = pool.submit(write_parquet, store, errors, reasons, ERRORS_SCHEMA) if errors else None
        told = pool.submit(write_parquet, store, log, said, ANSWERS_SCHEMA) if log else None
        published.result()
    sidecar_bytes, sidecar_sha256 = meta.result()
    errors_bytes, errors_sha256 = wrong.result() if wrong else (0, None)
    answers_bytes, answers_sha256 = told.result() if told else (0, None)
    return ShardRecord(
        plan=plan,
        index=index,
        planned=len(digests) + len(rejected) + forgotten,
        rows=len(digests),
        rejected=len(rejected),
        codes=dict(sorted(Counter(f"{item.stage}/{item.code}" for item in rejected).items())),
        file=f"data/{name}.arrow",
        bytes=nbytes,
        sha256=sha256,
        content=shard_content(digests).hex(),
        fingerprint=fingerprint_hex(fingerprint(digests)),
        sidecar=f"meta/{name}.parquet",
        sidecar_bytes=sidecar_bytes,
        sidecar_sha256=sidecar_sha256,
        errors=errors,
        errors_bytes=errors_bytes,
        errors_sha256=errors_sha256,
        forgotten=forgotten,
        answers=log,
        answers_bytes=answers_bytes,
        answers_sha256=answers_sha256,
    )


def read_answers(store: Store, shard: ShardRecord) -> Iterator[Answer]:
    """What servers said of the shard's rows."""
    if shard.answers is not None:
        with store.open(shard.answers) as file:
            yield from (Answer(**row) for row in pq.read_table(file, schema=ANSWERS_SCHEMA).to_pylist())


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """An Arrow IPC file of the rows. Batches are built from Python values: a slice of equal rows has other bytes."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in batches(rows):
            columns = {name: [getattr(row, name) for row in batch] for name in ROW_FIELDS}
            writer.write_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in record batches: bounded in bytes too, since a writer holds a whole batch in memory."""
    batch: list[Row] = []
    nbytes = 0
    for row in rows:
        batch.append(row)
        nbytes += len(row.image) + len(row.mask or b"")
        if len(batch) == BATCH_ROWS or nbytes >= BATCH_BYTES:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def sidecar_row(position: int, row: Row) -> dict[str, Any]:
    return {
        **vars(row),
        "row": position,
        "nbytes": len(row.image),
        "mask_nbytes": None if row.mask is None else len(row.mask),
        "aspect": row.width / row.height,
        "image": None,  # kept for the shard's length of time: the bytes are not
        "mask": None,
    }


def write_parquet(store: Store, name: str, rows: list[dict[str, Any]], schema: pa.Schema) -> tuple[int, str]:
    """Write a small table; its size in bytes and its sha256. (These differ between versions of Parquet: no root has them.)"""
    with store.temporary() as temporary:
        with temporary.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), file, compression="zstd")
        facts = temporary.stat().st_size, file_sha256(temporary)
        store.publish(temporary, name)
    return facts


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def done_name(plan: str, index: int) -> str:
    return f"{STAGING}/{plan}/shard-{index:06d}.json"


def done_record(store: Store, plan: str, index: int) -> ShardRecord | None:
    """A shard that is done: its record and all files that it names are there."""
    try:
        record = ShardRecord.from_json(json.loads(store.read(done_name(plan, index))))
    except FileNotFoundError:
        return None
    return record if store.missing(record.files()) is None else None


def done_records(store: Store, plan: str) -> dict[int, ShardRecord]:
    """The shards of a plan that are done: a record is there, and so are all files that it names."""
    names = [name for name in store.names(f"{STAGING}/{plan}") if name.endswith(".json")]
    records = [ShardRecord.from_json(json.loads(data)) for data in store.read_all(names)]
    if store.missing(file for record in records for file in record.files()) is None:
        return {record.index: record for record in records}
    return {record.index: record for record in records if store.missing(record.files()) is None}


def filtered(codes: Mapping[str, int]) -> int:
    """How many of the rejected were left out on purpose."""
    return sum(count for code, count in codes.items() if code.startswith(f"{FILTER}/"))
