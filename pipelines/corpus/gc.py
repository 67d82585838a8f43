"""Remove what no generation names: leftovers of writers that died, and with `purge` whatever only older generations hold.

A file that nobody names may be about to be named, so it has to be old. What lies below a plan that no generation has belongs
to an ingest that is unfinished, and stays; a purge takes such a plan for abandoned if none of its files was written lately, and
removes it whole (an ingest of it that does run fails its commit; the same command again does the shards anew). A purge also
first revokes the older generations, then removes their files, their pages last: so the same command again ends what a killed
one began. It also blanks what the plans say of forgotten rows; their keys stay, because an append goes by them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sightline.pipelines.corpus.columns import FOLDER, columns, info_parts, read_sidecar
from sightline.pipelines.corpus.history import Generation, History, read_history, read_page
from sightline.pipelines.corpus.manifest import Manifest, revoked_name
from sightline.pipelines.corpus.plan import REDACTED, input_name, plan_ids
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.shards import ShardRecord
from sightline.pipelines.corpus.store import STAGING, TEMPORARY, Store

DAY_S = 86_400.0
SHARD_FOLDERS = ("data", "meta", "errors")
PLAN_FOLDERS = ("plans", *SHARD_FOLDERS)


@dataclass(frozen=True)
class Collected:
    """What was removed (or would be).

    Attributes:
        files, bytes: how many.
        revoked: generations that cannot be opened any more, from now on.
        redacted: inputs of plans that were blanked.
        unfinished: plans that no generation has; their files stay.
        abandoned: such plans that were removed, for none of their files was written lately; only by a purge.
    """

    files: int
    bytes: int
    revoked: tuple[int, ...]
    redacted: int
    unfinished: tuple[str, ...]
    abandoned: tuple[str, ...]


def collect(store: Store, *, purge: bool = False, older_than_s: float = DAY_S, dry_run: bool = False) -> Collected:
    """Remove what no generation names and was not written lately; with `purge`, all but the current generation.

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: it is damaged, so that what it names is not known.
    """
    history = read_history(store)
    if history.problems:
        name, problem = history.problems[0]
        raise ValueError(
            f"{name} of {store.location} {problem}, so nothing is removed; see `sightline corpus verify {store.location}`"
        )
    older = history.live[1:] if purge else ()
    keep = {name for generation in (history.live[:1] if purge else history.live) for name in named(store, generation)}
    doomed = doomed_files(store, history, older) - keep if purge else set()
    if not dry_run:
        for generation in older:
            store.create(revoked_name(generation.manifest.generation), b"")
    finished = {plan for generation in history.live for plan in generation.manifest.plan_ids}
    begun = {plan: files_of_plan(store, plan) for plan in (unfinished_plans(store, finished) if purge else ())}
    abandoned = {
        plan: files for plan, files in begun.items() if files and min(age_s(store, name) for name in files) >= older_than_s
    }
    victims = [
        *chain.from_iterable(abandoned.values()),
        *leftovers(store, finished, keep | doomed, older_than_s),
        *sorted(doomed, key=lambda name: name.startswith("manifests/")),
    ]
    sizes = {name: size for name in victims if (size := store.size(name)) is not None}
    if not dry_run:
        for name in sizes:
            store.remove(name)
        for plan in (finished | abandoned.keys()) & set(store.folders(STAGING)):
            store.remove_folder(f"{STAGING}/{plan}")
        for plan in abandoned:
            discard(store, plan)
    redacted = sum(redact(store, history.live[0], plan, dry_run) for plan in history.current.plan_ids) if purge else 0
    unfinished = tuple(plan for plan in plan_ids(store) if plan not in finished and plan not in abandoned)
    revoked = tuple(generation.manifest.generation for generation in older)
    return Collected(len(sizes), sum(sizes.values()), revoked, redacted, unfinished, tuple(sorted(abandoned)))


def unfinished_plans(store: Store, finished: Collection[str]) -> list[str]:
    """The plans that have files and that no generation has."""
    return sorted({plan for folder in PLAN_FOLDERS for plan in store.folders(folder)} - set(finished))


def files_of_plan(store: Store, plan: str) -> list[str]:
    """First the records of what is done: without them the plan's ingest does its shards anew, whatever else is gone."""
    return [name for folder in (STAGING, *PLAN_FOLDERS) for name in store.names(f"{folder}/{plan}")]


def discard(store: Store, plan: str) -> None:
    """Remove a plan that no generation has, and all that was done of it."""
    for name in files_of_plan(store, plan):
        store.remove(name)
    for folder in (STAGING, *PLAN_FOLDERS):
        store.remove_folder(f"{folder}/{plan}")


def age_s(store: Store, name: str) -> float:
    """How long ago a file was written; 0 for one that is not there any more."""
    written = store.modified(name)
    return 0.0 if written is None else time.time() - written


def named(store: Store, generation: Generation) -> Iterator[str]:
    """The files that a generation names, and those of the finished columns of its rows."""
    manifest = generation.manifest
    yield from (page.file for page in manifest.pages)
    yield from shard_files(generation.shards)
    if manifest.tombstones is not None:
        yield manifest.tombstones
    corpus = Corpus(store, manifest, generation.shards)
    for info in columns(corpus):
        yield from (part.file for part in info_parts(corpus, info))


def shard_files(shards: Collection[ShardRecord]) -> Iterator[str]:
    return (name for shard in shards for name, _ in shard.files())


def doomed_files(store: Store, history: History, older: Collection[Generation]) -> set[str]:
    """What older generations name, also those that were revoked by a purge that did not come to its end."""
    generations = [*older, *(remains(store, manifest) for manifest in history.revoked)]
    doomed = {name for generation in generations for name in named(store, generation)}
    stems = {name.removeprefix("data/").removesuffix(".arrow") for name in doomed if name.startswith("data/")}
    current = {name.removeprefix("data/").removesuffix(".arrow") for name in shard_files(history.live[0].shards)}
    for group in column_groups(store):  # the forgotten rows' values, by whatever rule
        doomed |= {name for name in group if name.split("/", 3)[-1].removesuffix(".parquet") in stems - current}
    return doomed


def remains(store: Store, manifest: Manifest) -> Generation:
    """A revoked generation, as far as its pages are there yet."""
    pages = [(page, shards) for page in manifest.pages if not isinstance(shards := read_page(store, page), str)]
    return Generation(
        replace(manifest, pages=[page for page, _ in pages]), tuple(chain.from_iterable(shards for _, shards in pages))
    )


def leftovers(store: Store, finished: Collection[str], known: Collection[str], older_than_s: float) -> Iterator[str]:
    """Files that nobody names, long enough ago."""
    groups = [[name] for name in (*store.names("manifests/pages"), *store.names("tombstones"), *store.names(TEMPORARY))]
    for folder in SHARD_FOLDERS:
        groups += [[name] for plan in store.folders(folder) if plan in finished for name in store.names(f"{folder}/{plan}")]
    for plan in set(store.folders(STAGING)) & set(finished):
        groups += [[name] for name in store.names(f"{STAGING}/{plan}")]
    groups += column_groups(store)
    for group in groups:
        unnamed = [name for name in group if name not in known]
        if unnamed and min(age_s(store, name) for name in unnamed) >= older_than_s:
            yield from unnamed


def column_groups(store: Store) -> list[list[str]]:
    """The files of each rule of each column. They age together: a score may take days to compute."""
    keys = [f"{FOLDER}/{name}/{key}" for name in store.folders(FOLDER) for key in store.folders(f"{FOLDER}/{name}")]
    return [[*store.names(key), *(name for plan in store.folders(key) for name in store.names(f"{key}/{plan}"))] for key in keys]


def redact(store: Store, generation: Generation, plan: str, dry_run: bool) -> int:
    """Blank all but the keys of a plan's inputs that were forgotten; the number of those that were not blank yet."""
    shards = generation.shards
    if not any(shard.forgotten for shard in shards):
        return 0
    dead = {key for shard in shards if shard.forgotten for key in forgotten_keys(store, shard)}
    kept = {key for shard in shards if shard.plan == plan for key in read_sidecar(store, shard, ["key"])["key"].to_pylist()}
    with store.open(input_name(plan)) as file:
        parquet = pq.ParquetFile(file)
        table, group_rows = parquet.read(), parquet.metadata.row_group(0).num_rows
    rows = table.to_pylist()
    # A row that was rejected by one plan and kept by a later one stands in both.
    blanked = [blank(row, table.schema) if row["key"] in dead - kept else row for row in rows]
    count = sum(before != after for before, after in zip(rows, blanked, strict=True))
    if count and not dry_run:
        schema = table.schema.with_metadata({**(table.schema.metadata or {}), REDACTED: b"1"})
        with store.temporary() as temporary:
            with temporary.open("wb") as file:
                pq.write_table(pa.Table.from_pylist(blanked, schema=schema), file, row_group_size=group_rows, compression="zstd")
            store.publish(temporary, input_name(plan))
    return count


def forgotten_keys(store: Store, shard: ShardRecord) -> set[str]:
    """Inputs of a chunk that are neither rows nor errors."""
    with store.open(input_name(shard.plan)) as file:
        keys = pq.ParquetFile(file).read_row_group(shard.index, columns=["key"])["key"].to_pylist()
    known = read_sidecar(store, shard, ["key"])["key"].to_pylist()
    if shard.errors is not None:
        with store.open(shard.errors) as file:
            known += pq.read_table(file, columns=["key"])["key"].to_pylist()
    return set(keys) - set(known)


def blank(row: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
    empty = {field.name: None if field.nullable else [] if pa.types.is_list(field.type) else "" for field in schema}
    return {**empty, "key": row["key"]}
