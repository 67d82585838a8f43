"""Columns that are added to a corpus later (filters, scores, hashes): files beside the shards, whose bytes never change.

    columns/<name>/column.json            what it is; written last, so a column without it is unfinished
    columns/<name>/<key>/<shard>.parquet  one value a row; its metadata carries the shard's `content`

Invariant: equal rules on equal rows give equal values. So `key` is a digest of the rule, with the root in it unless the rule
sees one row at a time: a rule that changed cannot mix with its past, and after an append only the new shards of a per-row
rule are missing.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import TypeAdapter

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import SIDECAR_SCHEMA, canonical_json
from sightline.pipelines.corpus.shards import ShardRecord
from sightline.pipelines.corpus.store import Store, open_store

FOLDER = "columns"
CONTENT, COUNTS = b"content", b"counts"
NAME = re.compile(r"[a-z0-9_-]+")


@dataclass(frozen=True)
class Rule:
    """What decides a column's values.

    Attributes:
        kind: what computes them, e.g. `filter` or `clip_score`.
        params: its parameters, as JSON; whatever can change a value is in them.
        type: the Arrow type of a value.
        per_row: whether a row's value depends on that row alone.
    """

    kind: str
    params: Mapping[str, Any]
    type: pa.DataType
    per_row: bool = True

    def key(self, root: str) -> str:
        """Twelve hex digits that name these values of the rows with that root."""
        return _key(self.kind, self.params, str(self.type), self.per_row, root)


@dataclass(frozen=True)
class ColumnInfo:
    """What `column.json` says.

    Attributes:
        name, kind, type, rule, per_row: see `Rule`.
        root, rows: the corpus for which it was last completed.
        counts: a filter's rows that pass, and what each of its conditions costs.
        versions: of the libraries that computed it.
    """

    name: str
    kind: str
    type: str
    rule: dict[str, Any]
    per_row: bool
    root: str
    rows: int
    counts: dict[str, int] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One shard's share of a column: rows `start` to `stop` of the corpus, and the file of their values."""

    index: int
    shard: ShardRecord
    start: int
    stop: int
    file: str

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)


def parts(corpus: Corpus, name: str, rule: Rule) -> list[Part]:
    """A column's files, in the order of the rows, whether they are there or not.

    Raises:
        ValueError: the name is no name of a column.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a column; use a-z, 0-9, _ and -")
    return _parts(corpus, name, rule.key(corpus.root), rule.per_row)


def info_parts(corpus: Corpus, info: ColumnInfo) -> list[Part]:
    """The files of a column that `column.json` describes, as they are for this generation, whether there or not."""
    return _parts(corpus, info.name, key_of(info, corpus.root), info.per_row)


def _parts(corpus: Corpus, name: str, key: str, per_row: bool) -> list[Part]:
    starts = [0, *accumulate(shard.rows for shard in corpus.shards)]
    found = []
    for index, shard in enumerate(corpus.shards):
        # Named by content, a per-row value follows its shard into other generations; other rules see the place of a row too.
        stem = shard.file.removeprefix("data/").removesuffix(".arrow") if per_row else f"{index:06d}"
        found.append(Part(index, shard, starts[index], starts[index + 1], f"{FOLDER}/{name}/{key}/{stem}.parquet"))
    return found


def missing(store: Store, wanted: Sequence[Part]) -> list[Part]:
    """Those whose file is not there."""
    folders = {part.file.rpartition("/")[0] for part in wanted}
    there = {file for folder in folders for file in store.names(folder)}
    return [part for part in wanted if part.file not in there]


def read_sidecar(store: Store, shard: ShardRecord, columns: Sequence[str]) -> pa.Table:
    """Columns of one shard's rows, without its images."""
    schema = pa.schema([SIDECAR_SCHEMA.field(name) for name in columns])
    with store.open(shard.sidecar) as file:  # not its path: pyarrow reads `key=value` in a folder's name as a column
        return pq.read_table(file, columns=list(columns)).select(list(columns)).cast(schema)


def write_part(store: Store, part: Part, values: pa.Array, counts: Mapping[str, int] | None = None) -> None:
    """Write one shard's values, and what is worth counting about them, under their final name or not at all."""
    assert len(values) == part.shard.rows, f"{len(values)} values for {part.shard.rows} rows"
    metadata = {CONTENT: part.shard.content.encode(), COUNTS: canonical_json(dict(counts or {})).encode()}
    table = pa.table({"value": values}).replace_schema_metadata(metadata)
    with store.temporary() as temporary:
        with temporary.open("wb") as file:
            pq.write_table(table, file, compression="zstd")
        store.publish(temporary, part.file)


def commit_column(corpus: Corpus, name: str, rule: Rule, libraries: Sequence[str] = ()) -> ColumnInfo:
    """Make a column visible, once all of its parts are there; its counts are the sums of theirs."""
    store, wanted, counts = open_store(corpus.location), parts(corpus, name, rule), Counter[str]()
    absent = missing(store, wanted)
    assert not absent, f"{len(absent)} parts of {name} were never written, the first is {absent[0].file}"
    for part in wanted:
        with store.open(part.file) as file:
            counts.update(json.loads(pq.read_schema(file).metadata[COUNTS]))
    versions = {library: version(library) for library in ("sightline", *libraries)}
    params = json.loads(canonical_json(rule.params))
    info = ColumnInfo(name, rule.kind, str(rule.type), params, rule.per_row, corpus.root, corpus.rows, dict(counts), versions)
    store.replace(_info_name(name), (json.dumps(asdict(info), indent=1, ensure_ascii=False) + "\n").encode())
    return info


def write_column(corpus: Corpus, name: str, rule: Rule, values: pa.Array, libraries: Sequence[str] = ()) -> ColumnInfo:
    """Write a whole column: one value a row, in the order of the rows.

    Raises:
        ValueError: the name is no name of a column, or there are more or fewer values than rows.
    """
    if len(values) != corpus.rows:
        raise ValueError(f"{len(values)} values for {corpus.rows} rows; give one value a row")
    store = open_store(corpus.location)
    for part in parts(corpus, name, rule):
        write_part(store, part, values.slice(part.start, part.stop - part.start).cast(rule.type))
    return commit_column(corpus, name, rule, libraries)


def column_info(corpus: Corpus, name: str) -> ColumnInfo:
    """What a finished column is.

    Raises:
        ValueError: there is no such column, or its description is damaged.
    """
    try:
        return _decode(corpus, name, open_store(corpus.location).read(_info_name(name)))
    except FileNotFoundError:
        have = ", ".join(info.name for info in columns(corpus)) or "none"
        raise ValueError(
            f"{corpus.location} has no column {name!r}; it has {have}; make one with `sightline corpus filter` or `corpus score`"
        ) from None


def columns(corpus: Corpus) -> list[ColumnInfo]:
    """All finished columns, by name; some may be of other rows (`read_column` says so).

    Raises:
        ValueError: the description of one is damaged.
    """
    store = open_store(corpus.location)
    names = [name for name in store.folders(FOLDER) if NAME.fullmatch(name) and store.size(_info_name(name)) is not None]
    data = store.read_all([_info_name(name) for name in names])
    return [_decode(corpus, name, each) for name, each in zip(names, data, strict=True)]


def _decode(corpus: Corpus, name: str, data: bytes) -> ColumnInfo:
    try:
        info = TypeAdapter(ColumnInfo).validate_json(data, strict=True)
    except ValueError:
        info = None
    if info is None or info.name != name:  # files are found by the name that it says
        raise ValueError(f"{corpus.location}/{_info_name(name)} is damaged; remove the folder, and make the column again")
    return info


def read_column(corpus: Corpus, name: str) -> pa.ChunkedArray:
    """A column's values, one a row, in the order of the rows.

    Raises:
        ValueError: there is no such column, or it was made for other rows.
    """
    info, store = column_info(corpus, name), open_store(corpus.location)
    again = f"make it again with `sightline corpus {'filter' if info.kind == 'filter' else 'score'}`"
    wanted = _parts(corpus, name, key_of(info, corpus.root), info.per_row)
    absent = missing(store, wanted)
    if absent and (len(absent) == len(wanted) or not info.per_row):
        raise ValueError(f"the column {name!r} was made for other rows; {again}")
    if absent:
        raise ValueError(f"the column {name!r} lacks {len(absent)} of {len(wanted)} shards, which came after it; {again}")
    chunks = []
    for part in wanted:
        with store.open(part.file) as file:
            table = pq.read_table(file)
        if (table.schema.metadata or {}).get(CONTENT) != part.shard.content.encode() or len(table) != part.shard.rows:
            raise ValueError(f"the column {name!r} was made for other rows; {again}")
        chunks += table["value"].chunks
    if not chunks:  # a corpus without rows has no shard to tell the type
        return pa.chunked_array([pa.array([], pa.bool_())])
    return pa.chunked_array(chunks)


def read_mask(corpus: Corpus, name: str) -> NDArray[np.bool_]:
    """A filter's verdicts, one a row.

    Raises:
        ValueError: there is no such column, it is no filter, or it was made for other rows.
    """
    values = read_column(corpus, name)
    if values.type != pa.bool_():
        raise ValueError(
            f"the column {name!r} is no filter; make one of it with `sightline corpus filter CORPUS FILTER --score {name} --min X`"
        )
    return np.asarray(values.to_numpy(), dtype=np.bool_)


def key_of(info: ColumnInfo, root: str) -> str:
    """The key of a column's values for the rows with that root."""
    return _key(info.kind, info.rule, info.type, info.per_row, root)


def _key(kind: str, params: Mapping[str, Any], type_name: str, per_row: bool, root: str) -> str:
    return sha256(canonical_json([kind, params, type_name, None if per_row else root]).encode()).hexdigest()[:12]


def _info_name(name: str) -> str:
    return f"{FOLDER}/{name}/column.json"
