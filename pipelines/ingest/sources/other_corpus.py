"""Another Sightline corpus, told by its manifest: its rows with key, captions, labels, mask and extra unchanged.

A reference is `SHARD#ROW`; shards are named by their content, so it says what was read. Reading stays with the generation
that was listed, whatever is appended meanwhile. A damaged row is an error: it would get a valid digest here.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

from sightline.pipelines.corpus.manifest import CURRENT, read_shards
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.ingest.sources.item import Item, distinct
from sightline.pipelines.ingest.sources.place import Place, file_size, mounted, open_place, read_bytes

COLUMNS = ("key", "captions", "labels", "extra", "nbytes", "mask_nbytes")
MASK = "#mask"


@dataclass(frozen=True)
class OtherCorpus:
    """A corpus by its location and root hash."""

    location: str
    root: str
    kind: ClassVar[str] = "corpus"
    layout: ClassVar[str] = "another Sightline corpus (manifest.json)"

    @classmethod
    def found(cls, path: Place) -> bool:
        if file_size(path / CURRENT) is None:
            return False
        try:
            return str(json.loads(read_bytes(path, CURRENT))["format"]).startswith("sightline/")
        except (ValueError, KeyError, TypeError, RecursionError):
            return False  # somebody else's manifest

    @classmethod
    def open(cls, path: Place) -> OtherCorpus:
        return cls(str(path), Corpus.open(str(path)).root)

    def config(self) -> dict[str, Any]:
        return {}

    def classes(self) -> list[tuple[int, str]]:
        return [(int(entry["id"]), str(entry["name"])) for entry in self._corpus.manifest.classes]

    def items(self) -> Iterator[Item]:
        return distinct((item.image, item) for item in self._items())

    def read(self, reference: str) -> bytes:
        shard, _, row = reference.removesuffix(MASK).rpartition("#")
        place = open_place(self.location)
        try:
            with mounted(place) if isinstance(place, Path) else nullcontext():
                files, starts = self._shards
                found = self._corpus.checked_row(starts[files[shard]] + int(row))
        except ValueError as error:
            raise OSError(str(error)) from None
        data = found.mask if reference.endswith(MASK) else found.image
        assert data is not None
        return bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        return {"location": self.location, "root": self.root}

    @cached_property
    def _corpus(self) -> Corpus:
        return Corpus.open(self.location, self.root)

    @cached_property
    def _shards(self) -> tuple[dict[str, int], list[int]]:
        """The number of each shard by its file, and at which row of the corpus each begins."""
        records = read_shards(open_store(self.location), self._corpus.manifest.pages)
        starts = list(accumulate((record.rows for record in records), initial=0))
        return {record.file: number for number, record in enumerate(records)}, starts

    def _items(self) -> Iterator[Item]:
        files, starts = self._shards
        names = list(files)
        for index, row in enumerate(self._corpus.sidecar(COLUMNS).to_pylist()):
            number = bisect_right(starts, index) - 1
            reference = f"{names[number]}#{index - starts[number]}"
            yield Item(
                key=row["key"],
                image=reference,
                nbytes=row["nbytes"],
                captions=tuple(row["captions"]),
                labels=tuple(row["labels"]),
                mask=None if row["mask_nbytes"] is None else reference + MASK,
                mask_nbytes=row["mask_nbytes"],
                extra=row["extra"],
                block=names[number],
            )
