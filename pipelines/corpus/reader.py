"""Reading a corpus: any row at any moment, from any thread, without copying its bytes.

A row's global index runs through the shards in the manifest's order, then through each shard's rows; with the root it
names a row forever. Shards are memory-mapped when first touched, so opening costs the manifest alone and only pages
that are read take memory.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sightline.models.codec import MAX_PIXELS
from sightline.pipelines.corpus.digests import page_digest, root_digest, uid
from sightline.pipelines.corpus.manifest import CURRENT, Manifest, decode, encode, find_root, read_manifest, read_shards
from sightline.pipelines.corpus.plan import config_name, plan_config
from sightline.pipelines.corpus.schema import BYTES, ROW_FIELDS, SCHEMA, SIDECAR_SCHEMA, SPLIT, Row
from sightline.pipelines.corpus.shards import ShardRecord, file_sha256
from sightline.pipelines.corpus.store import LocalStore, Store, open_store

MOST_PIXELS = 178_000_000  # Pillow's own limit, and that of `sightline ingest --max-megapixels`
MAX_CLASS_ID = 1_000_000  # a tuple of names by id would take all memory for the id of a hostile manifest


class Corpus:
    """A committed corpus, open for reading. It may be shared between threads, and pickles as its location and root.

    Attributes:
        location: its folder or URL.
        manifest: the generation that was opened.
        shards: the records of its shards, in order.
    """

    def __init__(self, store: Store, manifest: Manifest, shards: Sequence[ShardRecord]) -> None:
        self.location = store.location
        self.manifest = manifest
        self._store = store
        self.shards = tuple(shards)
        self._starts = np.cumsum([0, *(shard.rows for shard in shards)]).tolist()
        self._open: list[_Shard | None] = [None] * len(shards)
        self._whole: list[bool | None] = [None] * len(shards)
        self._locks = [threading.Lock() for _ in shards]  # one each: a shard may have to be downloaded first

    @classmethod
    def open(cls, path: str | Path, root: str | None = None) -> Corpus:
        """Open the corpus at a place; with `root`, the generation of it that has that root hash.

        Raises:
            FileNotFoundError: there is no corpus, or it is incomplete.
            ValueError: its format is another one, it is damaged, or no generation has the root.
        """
        store = open_store(path)
        try:
            manifest = read_manifest(store) if root is None else find_root(store, root)
        except ValueError as error:
            raise ValueError(f"{error}{remedy_of(store)}") from None
        try:
            shards = read_shards(store, manifest.pages)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is incomplete: {error.filename} is missing; restore it or ingest again") from None
        if not listed_truly(manifest, shards):
            raise ValueError(f"{path} is damaged: its root is not that of its shards; see `sightline corpus verify {path}`")
        # Only where looking is cheap: an object store would be listed for seconds, and says itself what is not there.
        missing = store.missing(file for shard in shards for file in shard.files()) if isinstance(store, LocalStore) else None
        if missing is not None:
            raise FileNotFoundError(f"{path} is incomplete: {missing} is missing or has another size; restore it or ingest again")
        return cls(store, manifest, shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Corpus.open, (self.location, self.root))

    def __len__(self) -> int:
        return self.rows

    def __repr__(self) -> str:
        return f"Corpus({self.location!r}, rows={self.rows}, root={self.root[:12]})"

    @property
    def root(self) -> str:
        """The root hash (hex): equal roots are equal rows in equal order."""
        return self.manifest.root

    @property
    def rows(self) -> int:
        return self.manifest.rows

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names by id, none where the source names none; an id that no class has (ids may have gaps) holds "".

        Raises:
            ValueError: an id is too large for a list of names.
        """
        names = self.class_names
        if max(names, default=0) > MAX_CLASS_ID:
            raise ValueError(
                f"{self.location} has a class {max(names)}, and ids up to {MAX_CLASS_ID:,} can be used; give smaller ones by a "
                "classes.csv, and ingest again"
            )
        return tuple(names.get(number, "") for number in range(max(names, default=-1) + 1))

    @cached_property
    def class_names(self) -> dict[int, str]:
        """The name of each class by its id, whatever the ids."""
        return {int(entry["id"]): str(entry["name"]) for entry in self.manifest.classes}

    @cached_property
    def max_pixels(self) -> int:
        """How many pixels an image of it may have: the most that any of its ingests let through.

        Plans are no part of the rows, so a copy may lack them; then it is as many as an ingest lets through by itself. What a
        plan of strangers says counts up to the most that may be asked for.
        """
        there = [plan for plan in self.manifest.plan_ids if self._store.size(config_name(plan)) is not None]
        said = [plan_config(self._store, plan).get("max_pixels", MAX_PIXELS) for plan in there]
        return min(max([number for number in said if type(number) is int], default=MAX_PIXELS), MOST_PIXELS)

    def image(self, index: int) -> memoryview:
        """The encoded image of a row, where it lies: no copy; valid as long as it is held."""
        shard, row = self._locate(index)
        return shard.bytes_at("image", row)

    def mask(self, index: int) -> memoryview | None:
        """The row's PNG label map, where it lies; None where it has none."""
        shard, row = self._locate(index)
        return shard.bytes_or_none("mask", row)

    def captions(self, index: int) -> tuple[str, ...]:
        shard, row = self._locate(index)
        return tuple(shard.value("captions", row))

    def uid(self, index: int) -> bytes:
        """The row's 16 bytes of identity."""
        shard, row = self._locate(index)
        uid: bytes = shard.value("uid", row)
        return uid

    def row(self, index: int) -> Row:
        """A whole row; its image and mask are memoryviews of the mapped file."""
        shard, row = self._locate(index)
        values = {name: shard.value(name, row) for name in ROW_FIELDS if name not in BYTES}
        values["captions"], values["labels"] = tuple(values["captions"]), tuple(values["labels"])
        return Row(**values, image=shard.bytes_at("image", row), mask=shard.bytes_or_none("mask", row))

    def checked_row(self, index: int) -> Row:
        """A whole row, for whoever writes it elsewhere: damage would get a valid digest there.

        A shard's bytes are looked at once. In a damaged one, a row without a mask passes if its image and captions have their
        digests and all else is as its sidecar has it; a mask has no digest of its own.

        Raises:
            ValueError: it is not the row that was committed.
        """
        row = self.row(index)
        shard = bisect_right(self._starts, index) - 1
        if not self._is_whole(shard) and (row.mask is not None or not self._is_intact(row, shard, index - self._starts[shard])):
            raise ValueError(
                f"row {index:,} ({row.key!r}) of {self.location} is damaged, or its mask may be ({self.shards[shard].file}); "
                f"see `sightline corpus verify {self.location}`"
            )
        return row

    def _is_whole(self, number: int) -> bool:
        whole = self._whole[number]
        if whole is None:
            record = self.shards[number]
            whole = self._whole[number] = file_sha256(self._store.local(record.file, record.sha256)) == record.sha256
        return whole

    def _is_intact(self, row: Row, number: int, position: int) -> bool:
        with self._store.open(self.shards[number].sidecar) as file:
            said = pq.read_table(file).slice(position, 1).to_pylist()[0]
        found = {**vars(row), "captions": list(row.captions), "labels": list(row.labels)}
        same = all(found[name] == said[name] for name in ROW_FIELDS if name not in BYTES)
        return same and sha256(row.image).digest() == row.sha256 and uid(row.sha256, row.captions) == row.uid

    def sidecar(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of all rows but the bytes, in row order, from the Parquet sidecars.

        Raises:
            ValueError: there is no such column.
        """
        columns = list(SIDECAR_SCHEMA.names if columns is None else columns)
        if unknown := [name for name in columns if name not in SIDECAR_SCHEMA.names]:
            raise ValueError(f"the sidecar has no column {unknown[0]!r}; it has {', '.join(SIDECAR_SCHEMA.names)}")
        schema = pa.schema([SIDECAR_SCHEMA.field(name) for name in columns])
        tables = [schema.empty_table()]
        for shard in self.shards:
            # An open file, not its path: pyarrow would read `key=value` in a folder's name as a column.
            with self._store.open(shard.sidecar) as file:
                tables.append(pq.read_table(file, columns=columns).select(columns).cast(schema))
        return pa.concat_tables(tables)

    @cached_property
    def caption_counts(self) -> NDArray[np.int64]:
        """How many captions each row has [N]; the texts themselves are dropped shard by shard."""
        counts = [np.empty(0, np.int64)]
        for shard in self.shards:
            with self._store.open(shard.sidecar) as file:
                captions = pq.read_table(file, columns=["captions"]).column("captions")
            counts.append(pc.fill_null(pc.list_value_length(captions), 0).to_numpy().astype(np.int64))
        return np.concatenate(counts)

    @cached_property
    def splits(self) -> dict[str, int]:
        """How many rows each split has, by name; empty where the source names no splits."""
        names, codes = self._split_codes
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        return {name: int(count) for name, count in zip(names, counts, strict=True)}

    def select(self, split: str | None = None) -> NDArray[np.int64]:
        """Global row indices of a split, ascending; of all rows for None.

        Raises:
            ValueError: no row is in that split.
        """
        if split is None:
            return np.arange(self.rows, dtype=np.int64)
        names, codes = self._split_codes
        if split not in names:
            choices = f"it has {', '.join(names)}" if names else "it has no splits"
            raise ValueError(f"{self.location} has no split {split!r}; {choices}")
        return np.flatnonzero(codes == names.index(split)).astype(np.int64)

    @cached_property
    def _split_codes(self) -> tuple[list[str], NDArray[np.int64]]:
        """The splits' names, sorted, and per row the position of its split among them (-1: none)."""
        # Few distinct texts stand in `extra` as a rule, so each is parsed once.
        extra = self.sidecar(["extra"]).column("extra").combine_chunks().dictionary_encode()
        of_text = [json.loads(text).get(SPLIT) for text in extra.dictionary.to_pylist()]
        names = sorted({str(name) for name in of_text if name is not None})
        position = np.array([-1 if name is None else names.index(str(name)) for name in of_text], dtype=np.int64)
        return names, position[extra.indices.to_numpy(zero_copy_only=False)]

    def _locate(self, index: int) -> tuple[_Shard, int]:
        if not 0 <= index < self.manifest.rows:
            raise IndexError(f"row {index} of a corpus of {self.manifest.rows} rows")
        number = bisect_right(self._starts, index) - 1
        shard = self._open[number] or self._open_shard(number)
        return shard, index - self._starts[number]

    def _open_shard(self, number: int) -> _Shard:
        with self._locks[number]:
            shard = self._open[number]
            if shard is None:
                record = self.shards[number]
                path = self._store.local(record.file, record.sha256)
                try:
                    shard = _Shard.open(path)
                    if shard.starts[-1] != record.rows:
                        raise ValueError(f"it has {shard.starts[-1]:,} rows, not {record.rows:,}")
                except (pa.ArrowException, ValueError, KeyError, OSError) as error:  # Arrow's errors are of all these kinds
                    problem = " ".join(str(error).split())[:120]
                    remedy = f"see `sightline corpus verify {self.location}`"
                    raise ValueError(f"{self.location}/{record.file} is damaged ({problem}); {remedy}") from None
                self._open[number] = shard
        return shard


@dataclass(frozen=True)
class _Shard:
    """A mapped Arrow file: its batches, and for the bytes columns each batch's offsets and its one buffer."""

    batches: tuple[pa.RecordBatch, ...]
    starts: tuple[int, ...]
    buffers: dict[str, tuple[tuple[NDArray[np.int64], memoryview], ...]]

    @classmethod
    def open(cls, path: Path) -> _Shard:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        if file.schema != SCHEMA:
            raise ValueError("it has another schema")
        batches = tuple(file.get_batch(i) for i in range(file.num_record_batches))
        for batch in batches:
            batch.validate(full=True)  # lengths, offsets and text; of images and masks the offsets alone, so none is read
        starts = tuple(accumulate((len(batch) for batch in batches), initial=0))
        return cls(batches, starts, {name: tuple(_views(batch.column(name)) for batch in batches) for name in BYTES})

    def _locate(self, row: int) -> tuple[int, int]:
        number = bisect_right(self.starts, row) - 1
        return number, row - self.starts[number]

    def bytes_at(self, column: str, row: int) -> memoryview:
        number, position = self._locate(row)
        offsets, data = self.buffers[column][number]
        return data[offsets[position] : offsets[position + 1]]

    def bytes_or_none(self, column: str, row: int) -> memoryview | None:
        number, position = self._locate(row)
        valid = self.batches[number].column(column)[position].is_valid
        return self.bytes_at(column, row) if valid else None

    def value(self, column: str, row: int) -> Any:
        number, position = self._locate(row)
        return self.batches[number].column(column)[position].as_py()


def remedy_of(store: Store) -> str:
    """What to do about a `manifest.json` that cannot be read, where the last generation is whole; else nothing."""
    try:
        decode(store.read(CURRENT), CURRENT)
        return ""
    except (OSError, ValueError):
        pass
    last = max((name for name in store.names("manifests") if name.endswith(".json")), default=None)
    try:
        if last is None or encode(decode(data := store.read(last), last)) != data:
            return ""
    except (OSError, ValueError):
        return ""
    return f"; or, as {last} is whole, copy it over {CURRENT}"


def listed_truly(manifest: Manifest, shards: Sequence[ShardRecord]) -> bool:
    """Whether a manifest's root, pages and number of rows are those of the shards."""
    start = 0
    for page in manifest.pages:
        contents = [bytes.fromhex(shard.content) for shard in shards[start : start + page.shards]]
        if page_digest(contents).hex() != page.digest:
            return False
        start += page.shards
    root = root_digest(bytes.fromhex(page.digest) for page in manifest.pages).hex()
    return (root, start, sum(shard.rows for shard in shards)) == (manifest.root, len(shards), manifest.rows)


def _views(column: pa.LargeBinaryArray) -> tuple[NDArray[np.int64], memoryview]:
    """The offsets and the bytes of a column as read from a file: unsliced, so its buffers begin with its first row."""
    assert column.offset == 0
    _, offsets, data = column.buffers()
    # pyarrow's views are of signed chars, which image codecs refuse.
    view = memoryview(data).cast("B") if data is not None else memoryview(b"")
    return np.frombuffer(offsets, np.int64, len(column) + 1), view
