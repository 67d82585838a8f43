"""Why is this image in the corpus, or not? Every decision on a row, from the plan that listed it to the filters over it.

A row is asked for by its uid, its image's sha256 (hex, or the first digits of one), or its key. Nothing but sidecars, tables
of errors and of servers' answers, and plans is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sightline.pipelines.corpus.columns import columns, read_column
from sightline.pipelines.corpus.forget import SHA256_BYTES, UID_BYTES, read_tombstones
from sightline.pipelines.corpus.history import ancestors
from sightline.pipelines.corpus.manifest import Manifest, read_shards
from sightline.pipelines.corpus.plan import input_name
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import FILTER
from sightline.pipelines.corpus.shards import Answer, ShardRecord, read_answers
from sightline.pipelines.corpus.store import Store, open_store

HEX = re.compile(r"[0-9a-f]{4,64}")
SHOWN = ("uid", "key", "sha256", "source", "format", "width", "height", "nbytes", "captions", "labels", "extra")


@dataclass(frozen=True)
class Decision:
    """What one plan did with an input.

    Attributes:
        plan, chunk, plan_row: where the input stands.
        generation: the one that the plan came with.
        change: what made that generation (`ingest`, `append`, `retry`, ...).
        verdict: `kept`, `filtered`, `rejected`, or `forgotten`.
        reason: of what was rejected or filtered: stage, code, message and so on.
    """

    plan: str
    chunk: int
    plan_row: int
    generation: int
    change: str
    verdict: str
    reason: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """A row that is in the corpus: its number, its shard's file and its place there, what is known of it, its columns' values, and
    what the server said whom its image came from (None for what was not downloaded).
    """

    row: int
    file: str
    row_of_file: int
    facts: dict[str, Any]
    columns: dict[str, Any]
    answer: Answer | None = None


@dataclass(frozen=True)
class Account:
    """All that is known about one key.

    Attributes:
        key: None for a uid or sha256 that only tombstones know.
        decisions: in the order of the plans.
        places: where it is a row now.
        forgotten: whether tombstones have the name that was asked for.
    """

    key: str | None
    decisions: tuple[Decision, ...]
    places: tuple[Place, ...]
    forgotten: bool


def why(location: str, asked: str) -> list[Account]:
    """Every decision on the rows of that uid, sha256 or key: an account for each key (equal pairs share a uid).

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: nothing has that name, or several rows have a uid that begins so.
    """
    corpus, store = Corpus.open(location), open_store(location)
    manifest = corpus.manifest
    shards = read_shards(store, manifest.pages)
    names = corpus.sidecar(["uid", "sha256", "key"])
    keys = sorted({names["key"][i].as_py() for i in named_rows(names, asked)})
    forgotten = is_forgotten(store, manifest, asked)
    if not keys:
        if next(inputs_of(store, manifest, asked), None) is not None:
            keys = [asked]
        elif forgotten:
            return [Account(None, (), (), True)]
    if not keys:
        if re.fullmatch("[0-9a-fA-F]{1,3}", asked):
            raise ValueError(f"{location} has no row of the key {asked!r}; of a uid or sha256, give 4 digits or more")
        raise ValueError(f"{location} has no row, no error and no input of the uid, sha256 or key {asked!r}")
    generations = introductions(store, manifest)
    return [
        Account(
            key,
            tuple(decisions(store, manifest, shards, generations, key)),
            tuple(places(store, corpus, shards, names, key)),
            forgotten,
        )
        for key in keys
    ]


def named_rows(names: pa.Table, asked: str) -> list[int]:
    """The rows with a key, or else with a uid or sha256 that begins with these digits.

    Raises:
        ValueError: uids that differ begin so; the message says how many digits tell them apart.
    """
    rows: list[int] = pc.indices_nonzero(pc.equal(names["key"], asked)).to_pylist()
    digits = asked.lower()
    if rows or not HEX.fullmatch(digits):
        return rows
    for column, length in (("uid", UID_BYTES), ("sha256", SHA256_BYTES)):
        # Whole bytes first, in Arrow: only what is left is looked at in Python.
        start = bytes.fromhex(digits[: len(digits) // 2 * 2])[:length]
        slices = pc.binary_slice(names[column].cast(pa.binary()), 0, len(start))
        found: list[int] = pc.indices_nonzero(pc.equal(slices, pa.scalar(start, pa.binary()))).to_pylist()
        found = [i for i in found if names[column][i].as_py().hex().startswith(digits)]
        if len(different := sorted({names[column][i].as_py().hex() for i in found})) > 1:
            needed = 1 + max(shared_digits(*pair) for pair in pairwise(different))  # sorted: the closest are neighbours
            raise ValueError(
                f"{asked} is the beginning of {len(different):,} {column}s, as {different[0]} and {different[1]}; "
                f"{needed} digits tell them apart"
            )
        if found:
            return found
    return []


def shared_digits(a: str, b: str) -> int:
    """How many digits two names that differ have in common at their beginning."""
    return next(i for i, (one, other) in enumerate(zip(a, b, strict=True)) if one != other)


def is_forgotten(store: Store, manifest: Manifest, asked: str) -> bool:
    digits = asked.lower()
    whole = HEX.fullmatch(digits) and len(digits) in (2 * UID_BYTES, 2 * SHA256_BYTES)
    return bool(whole) and bytes.fromhex(digits) in read_tombstones(store, manifest.tombstones)


def inputs_of(store: Store, manifest: Manifest, key: str) -> Iterator[tuple[str, int]]:
    """(plan, its row) of every input with that key."""
    for plan in manifest.plan_ids:
        with store.open(input_name(plan)) as file:
            keys = pq.read_table(file, columns=["key"])["key"]
        yield from ((plan, row) for row in pc.indices_nonzero(pc.equal(keys, key)).to_pylist())


def decisions(
    store: Store, manifest: Manifest, shards: Sequence[ShardRecord], generations: dict[str, tuple[int, str]], key: str
) -> Iterator[Decision]:
    for plan, plan_row in inputs_of(store, manifest, key):
        with store.open(input_name(plan)) as file:
            chunk = plan_row // pq.ParquetFile(file).metadata.row_group(0).num_rows
        shard = next(shard for shard in shards if (shard.plan, shard.index) == (plan, chunk))
        verdict, reason = judged(store, shard, key)
        yield Decision(plan, chunk, plan_row, *generations[plan], verdict, reason)


def judged(store: Store, shard: ShardRecord, key: str) -> tuple[str, dict[str, Any]]:
    """What became of an input of a shard's chunk, and why."""
    if shard.errors is not None:
        with store.open(shard.errors) as file:
            found = pq.read_table(file, filters=[("key", "==", key)]).to_pylist()
        if found:
            return ("filtered" if found[0]["stage"] == FILTER else "rejected"), found[0]
    with store.open(shard.sidecar) as file:
        kept = key in pq.read_table(file, columns=["key"])["key"].to_pylist()
    return ("kept" if kept else "forgotten"), {}


def introductions(store: Store, manifest: Manifest) -> dict[str, tuple[int, str]]:
    """The generation that each plan came with, and its change."""
    found: dict[str, tuple[int, str]] = {}
    for one in ancestors(store, manifest):  # the newest first, so the oldest has the last word
        found.update(dict.fromkeys(one.plan_ids, (one.generation, one.change)))
    return found


def places(store: Store, corpus: Corpus, shards: Sequence[ShardRecord], names: pa.Table, key: str) -> Iterator[Place]:
    values = {info.name: values_of(corpus, info.name) for info in columns(corpus)}
    details = corpus.sidecar(["row", *SHOWN])
    starts, start = [], 0
    for shard in shards:
        starts.append((start, start + shard.rows, shard))
        start += shard.rows
    for row in pc.indices_nonzero(pc.equal(names["key"], key)).to_pylist():
        facts = details.slice(row, 1).to_pylist()[0]
        position = facts.pop("row")
        shard = next(shard for low, high, shard in starts if low <= row < high)
        facts.update(uid=facts["uid"].hex(), sha256=facts["sha256"].hex())
        scored = {name: None if column is None else column[row].as_py() for name, column in values.items()}
        answer = next((answer for answer in read_answers(store, shard) if answer.key == key), None)
        yield Place(row, shard.file, position, facts, scored, answer)


def values_of(corpus: Corpus, name: str) -> pa.ChunkedArray | None:
    """A column's values; None where it was made for other rows."""
    try:
        return read_column(corpus, name)
    except ValueError:
        return None
