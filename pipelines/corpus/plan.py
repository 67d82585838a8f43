"""A plan freezes what an ingest will do, before it does any of it.

Input rows are sorted by key and then permuted by a seeded hash of the key, so that the order depends on neither listing
nor luck and a folder per class does not become a shard per class. Chunk i is rows [i*S, (i+1)*S). Shard i is a pure
function of (plan, i), hence the same command again continues where the last one ended. `plan_id` names input and
configuration together.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightline.pipelines.corpus.digests import lp
from sightline.pipelines.corpus.schema import BATCH_ROWS, FORMAT, canonical_json
from sightline.pipelines.corpus.store import Store

MIN_SHARD_ROWS, MAX_SHARD_ROWS, AIMED_SHARDS = 256, 8_192, 64
DIGEST_ROWS = 4_096
REDACTED = b"redacted"  # in the metadata of a plan's table: what it said of forgotten rows was taken out


@dataclass(frozen=True)
class Plan:
    """The identity and the shape of a frozen plan; its rows lie in Parquet, one row group a chunk.

    Attributes:
        plan_id: 12 hex digits of sha256(input digest, config digest).
        input_digest, config_digest: hex.
        rows: how many inputs there are.
        shard_rows: S, how many inputs a chunk has (the last may have fewer).
        config: everything else that decides bytes.
    """

    plan_id: str
    input_digest: str
    config_digest: str
    rows: int
    shard_rows: int
    config: Mapping[str, Any]

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def chunk_rows(self, index: int) -> int:
        return min(self.shard_rows, self.rows - index * self.shard_rows)


def default_shard_rows(rows: int) -> int:
    """Whole batches, and about `AIMED_SHARDS` shards within the bounds; a function of the number of inputs alone."""
    wanted = -(-rows // (AIMED_SHARDS * BATCH_ROWS)) * BATCH_ROWS
    return min(max(wanted, MIN_SHARD_ROWS), MAX_SHARD_ROWS)


def order_key(seed: int, key: str) -> bytes:
    """Where a seeded permutation puts a key."""
    return sha256(b"sl-order-1" + seed.to_bytes(8, "little") + lp(key.encode())).digest()


def make_plan(
    rows: Iterable[Mapping[str, Any]],
    schema: pa.Schema,
    config: Mapping[str, Any],
    *,
    seed: int,
    shard_rows: int | None,
) -> tuple[Plan, pa.Table]:
    """The plan over input rows (each with a unique `key`), and its rows in plan order.

    Raises:
        ValueError: there are no rows, a key occurs twice, or `seed` or `shard_rows` is out of range.
    """
    by_key = sorted(rows, key=lambda row: str(row["key"]))
    if not by_key:
        raise ValueError("there is nothing to ingest: the source lists no images")
    for row, following in itertools.pairwise(by_key):
        if row["key"] == following["key"]:
            raise ValueError(f"the key {row['key']!r} occurs twice in the source; give each image its own")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} is out of range; give one from 0 to 2^63 - 1")
    shard_rows = default_shard_rows(len(by_key)) if shard_rows is None else shard_rows
    if not 1 <= shard_rows <= MAX_SHARD_ROWS:
        raise ValueError(f"{shard_rows} rows a shard is out of range; give 1 to {MAX_SHARD_ROWS}")
    whole = {"format": FORMAT, "seed": seed, "shard_rows": shard_rows, **config}
    input_digest = digest_rows(by_key, schema)
    config_digest = sha256(canonical_json(whole).encode()).hexdigest()
    plan_id = sha256(bytes.fromhex(input_digest + config_digest)).hexdigest()[:12]
    # Rows of one container (`block`: a tar file, a Parquet row group) stay together, so that a shard opens few of them.
    permuted = sorted(by_key, key=lambda row: order_key(seed, str(row.get("block") or row["key"])))
    plan = Plan(plan_id, input_digest, config_digest, len(by_key), shard_rows, whole)
    return plan, pa.Table.from_pylist(permuted, schema=schema)


def digest_rows(rows: list[Mapping[str, Any]], schema: pa.Schema) -> str:
    """sha256 of the rows' Arrow stream: unlike Parquet's, its bytes are the same under every pyarrow version."""
    digest = sha256()
    for start in range(0, len(rows), DIGEST_ROWS):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows[start : start + DIGEST_ROWS], schema=schema))
        digest.update(lp(sink.getvalue()))
    return digest.hexdigest()


def input_name(plan_id: str) -> str:
    return f"plans/{plan_id}/input.parquet"


def config_name(plan_id: str) -> str:
    return f"plans/{plan_id}/config.json"


def save_plan(store: Store, plan: Plan, table: pa.Table) -> None:
    """Write the plan, its configuration last: a plan with a configuration is whole."""
    with store.temporary() as temporary:
        with temporary.open("wb") as file:
            pq.write_table(table, file, row_group_size=plan.shard_rows, compression="zstd")
        store.publish(temporary, input_name(plan.plan_id))
    facts = {
        "plan_id": plan.plan_id,
        "input_digest": plan.input_digest,
        "config_digest": plan.config_digest,
        "rows": plan.rows,
        "config": plan.config,
    }
    store.replace(config_name(plan.plan_id), (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())


def read_chunk(store: Store, plan: Plan, index: int) -> list[dict[str, Any]]:
    """The input rows of one chunk, in plan order; reads that chunk's row group only."""
    with store.open(input_name(plan.plan_id)) as file:
        rows: list[dict[str, Any]] = pq.ParquetFile(file).read_row_group(index).to_pylist()
    assert len(rows) == plan.chunk_rows(index), f"chunk {index} of plan {plan.plan_id} has {len(rows)} rows"
    return rows


def plan_config(store: Store, plan_id: str) -> dict[str, Any]:
    """The configuration that a plan was made with."""
    config: dict[str, Any] = json.loads(store.read(config_name(plan_id)))["config"]
    return config


def plan_ids(store: Store) -> list[str]:
    """The plans that a corpus, finished or not, was begun with; a plan is there once it is whole."""
    return [plan_id for plan_id in store.folders("plans") if store.size(config_name(plan_id)) is not None]
