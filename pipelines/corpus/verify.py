"""Is every byte of a corpus the one that was committed? If not: which file, and which of its rows.

What is believed is as little as can be. Manifests name their parent by its sha256 and pages by their bytes; pages name
shards by theirs; each row carries its image's sha256 and a uid over image and captions; and the sidecar repeats every
column but the bytes. So all digests and counts are computed again from the rows, from the bottom to the root, and a
damaged shard is compared row by row with what its rows and its sidecar say of themselves. Nothing stops at the first
damage. A mask has no digest of its own: damage inside of one is found, and told as somewhere between the rows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightline.pipelines.corpus.columns import CONTENT, columns, info_parts
from sightline.pipelines.corpus.digests import fingerprint, fingerprint_hex, row_digest, shard_content, uid
from sightline.pipelines.corpus.history import History, read_history
from sightline.pipelines.corpus.manifest import PlanFacts
from sightline.pipelines.corpus.plan import REDACTED, config_name, digest_rows, input_name
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.rows import batch_rows, on_disk
from sightline.pipelines.corpus.schema import BYTES, ERRORS_SCHEMA, SCHEMA, SIDECAR_SCHEMA, canonical_json
from sightline.pipelines.corpus.shards import ShardRecord, file_sha256
from sightline.pipelines.corpus.store import Store

# What Arrow and Parquet raise on bytes that are not what was written (their errors are ValueErrors, KeyErrors and their own).
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was committed; rows `first` to `last` of the file, where it is rows."""

    file: str
    problem: str
    first: int | None = None
    last: int | None = None

    def __str__(self) -> str:
        if self.first is None:
            return f"{self.file}: {self.problem}"
        rows = f"row {self.first}" if self.first == self.last else f"rows {self.first} to {self.last}"
        return f"{self.file}: {rows}: {self.problem}"


@dataclass(frozen=True)
class Verified:
    """What was looked at (the current generation's shards, rows and bytes), and what is wrong with it."""

    root: str
    generation: int
    shards: int
    rows: int
    bytes: int
    damages: tuple[Damage, ...]


def verify(store: Store, *, quick: bool = False, cpus: int = 1, progress: Watch | None = None) -> Verified:
    """Check all generations that were not revoked; `quick` takes files with the right sizes for whole.

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: no manifest of it can be read.
    """
    history = read_history(store)
    damages = [Damage(*problem) for problem in history.problems]
    for facts in history.current.plans:
        damages += check_plan(store, facts)
    damages += check_tombstones(store, history)
    shards = list({shard.file: shard for generation in history.live for shard in generation.shards}.values())
    watch = progress or (lambda done, total: None)
    watch(0, len(shards))
    for done, found in enumerate(check_shards(store, shards, quick, cpus), 1):
        damages += found
        watch(done, len(shards))
    if not damages:
        damages += check_columns(store)
    current = history.current
    order = {shard.file: place for place, shard in enumerate(shards)}
    damages.sort(key=lambda damage: order.get(damage.file, -1))  # processes answer in any order
    count = len(next((generation.shards for generation in history.live if generation.manifest == current), ()))
    return Verified(current.root, current.generation, count, current.rows, current.bytes, tuple(damages))


def check_shards(store: Store, shards: Sequence[ShardRecord], quick: bool, cpus: int) -> Iterator[list[Damage]]:
    if cpus == 1 or len(shards) < 2:
        yield from (check_shard(store, shard, quick) for shard in shards)
        return
    with ProcessPoolExecutor(min(cpus, len(shards)), mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(check_shard, store, shard, quick) for shard in shards]):
            yield future.result()


def check_shard(store: Store, shard: ShardRecord, quick: bool) -> list[Damage]:
    """All that is wrong with one shard's files."""
    damages, whole = [], {}
    for name, size in shard.files():
        found = store.size(name)
        if found is None:
            damages.append(Damage(name, "is missing"))
        elif found != size:
            damages.append(Damage(name, f"has {found:,} bytes, {size:,} were written"))
        whole[name] = found is not None
    if quick:
        return damages
    sidecar = None
    if whole[shard.sidecar]:
        sidecar = read_table(store, shard.sidecar, SIDECAR_SCHEMA, shard.rows)
        if isinstance(sidecar, str):
            damages.append(Damage(shard.sidecar, sidecar))
    if whole[shard.file]:
        with on_disk(store, shard.file) as path:
            damages += check_rows(path, shard, sidecar if isinstance(sidecar, pa.Table) else None)
    if shard.errors is not None and whole[shard.errors]:
        errors = read_table(store, shard.errors, ERRORS_SCHEMA, shard.rejected)
        if isinstance(errors, str):
            damages.append(Damage(shard.errors, errors))
        else:
            pairs = zip(errors["stage"].to_pylist(), errors["code"].to_pylist(), strict=True)
            codes = Counter(f"{stage}/{code}" for stage, code in pairs)
            if codes != Counter(shard.codes):
                damages.append(Damage(shard.errors, f"says {dict(codes)}, and its shard was committed with {shard.codes}"))
    # Last: what is wrong inside of a table says more than its digest.
    tables = {shard.sidecar: shard.sidecar_sha256, shard.errors: shard.errors_sha256, shard.answers: shard.answers_sha256}
    for table, digest in tables.items():
        if table is not None and whole[table] and not any(damage.file == table for damage in damages):
            with on_disk(store, table) as path:
                if file_sha256(path) != digest:
                    damages.append(Damage(table, "has other bytes than were committed"))
    return damages


def read_table(store: Store, name: str, schema: pa.Schema, rows: int) -> pa.Table | str:
    """A Parquet table, or what is wrong with it as a whole."""
    try:
        with store.open(name) as file:
            table = pq.read_table(file).select(schema.names).cast(schema)
        table.validate(full=True)
    except UNREADABLE as error:
        return f"cannot be read ({' '.join(str(error).split())[:120]})"
    return table if len(table) == rows else f"has {len(table):,} rows, its shard was committed with {rows:,}"


def check_rows(path: Path, shard: ShardRecord, sidecar: pa.Table | None) -> list[Damage]:
    """What is wrong with a shard's Arrow file, or with the sidecar where the file itself is whole."""
    intact = file_sha256(path) == shard.sha256
    try:
        batches = read_batches(path)
    except UNREADABLE as error:
        return [Damage(shard.file, f"cannot be read ({' '.join(str(error).split())[:120]})", 0, max(shard.rows - 1, 0))]
    damages, bad, digests = [], set[int](), list[bytes]()
    places: list[int] = []
    for start, stop, batch in located(batches, shard.rows):
        if batch is None:
            damages.append(Damage(shard.file, "cannot be read", start, stop - 1))
            continue
        for place, row in enumerate(batch_rows(batch), start):
            try:
                digests.append(row_digest(row))
                digest = sha256(row.image).digest()
                whole = digest == row.sha256 and row.uid == uid(digest, row.captions)
            except (OverflowError, TypeError, AttributeError):  # a null or a negative label, where none can be
                whole = False
            if not whole:
                bad.add(place)
        places += range(start, stop)
    differ: set[int] = set()
    if sidecar is not None:
        readable = [batch for batch in batches if batch is not None]
        known = [i for i, place in enumerate(places) if place < len(sidecar)]
        expected = derived(readable, places).take(pa.array(known, pa.int64()))
        rows = differing(expected, sidecar.take(pa.array([places[i] for i in known], pa.int64())))
        differ = {places[known[i]] for i in rows}
    if intact and not bad:
        damages += [Damage(shard.sidecar, "not what the shard has", *bounds) for bounds in ranges(differ)]
    else:
        damages += [Damage(shard.file, "not what was committed", *bounds) for bounds in ranges(bad | differ)]
    if not any(damage.file == shard.file for damage in damages):
        facts = (len(digests), shard_content(digests).hex(), fingerprint_hex(fingerprint(digests)))
        if facts != (shard.rows, shard.content, shard.fingerprint):
            damages.append(Damage(shard.file, "holds other rows than were committed", 0, max(shard.rows, len(digests), 1) - 1))
        elif not intact:
            damages.append(Damage(shard.file, "has other bytes between its rows than were committed", 0, max(shard.rows, 1) - 1))
    return damages


def read_batches(path: Path) -> list[pa.RecordBatch | None]:
    """The file's batches; None for one that is damaged. Nothing is touched that its offsets could lead astray."""
    with path.open("rb") as file:
        opened = pa.ipc.open_file(pa.py_buffer(file.read()))  # not mapped: a file that shrinks would end the process
    if opened.schema != SCHEMA:
        raise ValueError("it has another schema")
    batches: list[pa.RecordBatch | None] = []
    for number in range(opened.num_record_batches):
        try:
            batch = opened.get_batch(number)
            batch.validate(full=True)
            batches.append(batch)
        except UNREADABLE:
            batches.append(None)
    return batches


def located(batches: Sequence[pa.RecordBatch | None], rows: int) -> Iterator[tuple[int, int, pa.RecordBatch | None]]:
    """Batches with the rows that they hold; what cannot be read fills the space between what can."""
    broken = [i for i, batch in enumerate(batches) if batch is None]
    after = sum(batch.num_rows for batch in batches[broken[-1] :] if batch is not None) if broken else 0
    start = 0
    for i, batch in enumerate(batches):
        if batch is not None and (not broken or i < broken[0]):
            yield start, start + batch.num_rows, batch
            start += batch.num_rows
    if broken:
        yield start, max(start + 1, rows - after), None  # also those between two that are broken: their places are unknown
        start = max(start + 1, rows - after)
        for batch in batches[broken[-1] + 1 :]:
            assert batch is not None
            yield start, start + batch.num_rows, batch
            start += batch.num_rows


def derived(batches: Sequence[pa.RecordBatch], places: Sequence[int]) -> pa.Table:
    """The sidecar as it follows from the rows that can be read."""
    table = pa.Table.from_batches(batches, schema=SCHEMA)
    sizes = {name: pc.binary_length(table[name]).cast(pa.int64()) for name in BYTES}
    width, height = (table[side].cast(pa.float64()) for side in ("width", "height"))
    values = {
        **{name: table[name] for name in SCHEMA.names if name not in BYTES},
        "row": pa.array(places, pa.int32()),
        "nbytes": sizes["image"],
        "mask_nbytes": sizes["mask"],
        "aspect": pc.divide(width, height).cast(pa.float32()),
    }
    return pa.table([values[name] for name in SIDECAR_SCHEMA.names], schema=SIDECAR_SCHEMA)


def differing(one: pa.Table, other: pa.Table) -> set[int]:
    """The rows in which two tables of one schema and length differ."""
    rows: set[int] = set()
    for name in one.column_names:
        if not one[name].equals(other[name]):
            pairs = zip(one[name].to_pylist(), other[name].to_pylist(), strict=True)
            rows |= {i for i, (left, right) in enumerate(pairs) if left != right}
    return rows


def ranges(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, as first and last."""
    first = last = None
    for row in sorted(rows):
        if last is not None and row == last + 1:
            last = row
            continue
        if first is not None and last is not None:
            yield first, last
        first = last = row
    if first is not None and last is not None:
        yield first, last


def check_plan(store: Store, facts: PlanFacts) -> list[Damage]:
    """A plan's configuration and its inputs are those that its id names."""
    config, table = config_name(facts.id), input_name(facts.id)
    damages = []
    try:
        said = json.loads(store.read(config))
        digest = sha256(canonical_json(said["config"]).encode()).hexdigest()
        identity = sha256(bytes.fromhex(facts.input_digest + facts.config_digest)).hexdigest()[:12]
        expected = {**asdict(facts), "plan_id": facts.id, "config_digest": digest}
        if identity != facts.id or any(said[name] != expected[name] for name in said if name != "config"):
            damages.append(Damage(config, "is not the configuration that the plan's id names"))
    except (*UNREADABLE, TypeError, AttributeError):
        damages.append(Damage(config, "is missing or cannot be read"))
    try:
        with store.open(table) as file:
            inputs = pq.read_table(file)
        redacted = REDACTED in (inputs.schema.metadata or {})  # rows that were forgotten for good are blank in it
        rows = sorted(inputs.to_pylist(), key=lambda row: str(row["key"]))
        if len(rows) != facts.rows:
            damages.append(Damage(table, f"has {len(rows):,} inputs, the plan has {facts.rows:,}"))
        elif not redacted and digest_rows(rows, as_planned(inputs.schema)) != facts.input_digest:
            damages.append(Damage(table, "is not the list of inputs that the plan's id names"))
    except UNREADABLE:
        damages.append(Damage(table, "is missing or cannot be read"))
    return damages


def as_planned(schema: pa.Schema) -> pa.Schema:
    """A plan's schema from that of its Parquet file, which has another name for the items of lists."""
    lists = {field.name: pa.list_(field.type.value_type) for field in schema if pa.types.is_list(field.type)}
    return pa.schema([field.with_type(lists.get(field.name, field.type)) for field in schema])


def check_tombstones(store: Store, history: History) -> list[Damage]:
    names = {generation.manifest.tombstones for generation in history.live} - {None}
    damages = []
    for name in sorted(str(name) for name in names):
        try:
            if sha256(store.read(name)).hexdigest()[:12] not in name:
                damages.append(Damage(name, "is not what was committed"))
        except (OSError, ValueError):
            damages.append(Damage(name, "is missing"))
    return damages


def check_columns(store: Store) -> list[Damage]:
    """The column files that were completed for this root have as many values as their shards have rows."""
    corpus = Corpus.open(store.location)
    damages = []
    for info in columns(corpus):
        for part in info_parts(corpus, info) if info.root == corpus.root else ():
            try:
                with store.open(part.file) as file:
                    table = pq.read_table(file)
            except UNREADABLE as error:
                damages.append(Damage(part.file, f"cannot be read ({' '.join(str(error).split())[:120]})"))
                continue
            if len(table) != part.shard.rows or (table.schema.metadata or {}).get(CONTENT) != part.shard.content.encode():
                damages.append(Damage(part.file, "is of other rows than its shard"))
    return damages
