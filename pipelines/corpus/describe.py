"""What is in a corpus: counts, histograms and quantiles, from the manifest and the sidecars; no image is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sightline.pipelines.corpus.columns import columns
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import FILTER
from sightline.pipelines.corpus.shards import filtered
from sightline.pipelines.corpus.view import Cost, select_view

READ = ("uid", "format", "width", "height", "captions", "labels", "sha256", "nbytes", "mask_nbytes", "aspect")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 30
TOP_CLASSES = 20


@dataclass(frozen=True)
class Histogram:
    """How a quantity is distributed.

    Attributes:
        name, unit: what it is.
        edges: BINS + 1 values or fewer; the last bin holds the largest hundredth too, however large.
        counts: one a bin.
        quantiles: the values at `QUANTILES`.
        mean: of all values.
    """

    name: str
    unit: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    quantiles: tuple[float, ...]
    mean: float


@dataclass(frozen=True)
class FilterFacts:
    """What a filter lets pass of the rows for which it was made, and what each of its conditions costs."""

    name: str
    rows: int
    passed: int
    costs: Mapping[str, int]
    current: bool


@dataclass(frozen=True)
class ColumnFacts:
    """A column that was added: what computes it and its values' type, for how many rows it was made, and by which rule."""

    name: str
    kind: str
    type: str
    rows: int
    rule: Mapping[str, Any]
    current: bool


@dataclass(frozen=True)
class Description:
    """Statistics of a corpus, or of a split of it.

    Attributes:
        location, root, generation, change: what was looked at; `split` None for all rows.
        rows, bytes: of the split; bytes are those of its images.
        seen, kept, filtered, errors, forgotten: the accounts of the whole corpus, with `codes` of what became no row.
        formats, splits: rows by each.
        histograms: of sizes, aspects and captions.
        classes: rows by class (its name, or its id where it has none), the most frequent first; `class_count` of them all.
        labelled, masks, captioned: rows with any.
        equal_pairs, equal_images: rows with the uid, or the image, of an earlier row.
        filters: what each costs; `view`: what those that were asked for cost together, in their order.
        columns: all that was added later, filters too.
    """

    location: str
    root: str
    generation: int
    change: str
    split: str | None
    rows: int
    bytes: int
    shards: int
    seen: int
    kept: int
    filtered: int
    errors: int
    forgotten: int
    codes: Mapping[str, int]
    formats: Mapping[str, int]
    splits: Mapping[str, int]
    histograms: tuple[Histogram, ...]
    classes: Mapping[str, int]
    class_count: int
    labelled: int
    masks: int
    captioned: int
    equal_pairs: int
    equal_images: int
    filters: tuple[FilterFacts, ...]
    view: tuple[Cost, ...]
    columns: tuple[ColumnFacts, ...]


def describe(corpus: Corpus, split: str | None = None, filters: Sequence[str] = ()) -> Description:
    """Statistics of a corpus or a split, and what filters cost there, each alone and after those before it.

    Raises:
        ValueError: there is no such split or filter.
    """
    manifest, table = corpus.manifest, corpus.sidecar(READ)
    if split is not None:
        table = table.take(pa.array(corpus.select(split)))
    captions = table["captions"].combine_chunks()
    texts = captions.flatten()
    labels = table["labels"].combine_chunks().flatten()
    histograms = (
        histogram("width", "px", table["width"]),
        histogram("height", "px", table["height"]),
        histogram("aspect", "width / height", table["aspect"]),
        histogram("image size", "kB", pc.divide(table["nbytes"].cast(pa.float64()), 1e3)),
        histogram("captions", "per image", pc.fill_null(pc.list_value_length(captions), 0)),
        histogram("caption length", "chars", pc.utf8_length(texts)),
        histogram("caption length", "words", words(texts)),
    )
    left_out = filtered(manifest.codes)
    infos = columns(corpus)
    counted = counts(labels)
    by_class = Counter[str]()
    for number, count in counted.items():
        by_class[corpus.class_names.get(number) or str(number)] += count
    return Description(
        location=corpus.location,
        root=corpus.root,
        generation=manifest.generation,
        change=manifest.change,
        split=split,
        rows=len(table),
        bytes=total(table["nbytes"]),
        shards=sum(page.shards for page in manifest.pages),
        seen=manifest.seen,
        kept=manifest.rows,
        filtered=left_out,
        errors=manifest.rejected - left_out,
        forgotten=manifest.forgotten,
        codes=dict(manifest.codes),
        formats={str(name): count for name, count in counts(table["format"]).items()},
        splits=corpus.splits,
        histograms=tuple(one for one in histograms if one is not None),
        classes=dict(list(by_class.items())[:TOP_CLASSES]),
        class_count=len(by_class),
        labelled=nonzero(pc.fill_null(pc.list_value_length(table["labels"]), 0)),
        masks=len(table) - table["mask_nbytes"].null_count,
        captioned=nonzero(pc.fill_null(pc.list_value_length(captions), 0)),
        equal_pairs=len(table) - int(pc.count_distinct(table["uid"]).as_py()),
        equal_images=len(table) - int(pc.count_distinct(table["sha256"]).as_py()),
        filters=tuple(
            FilterFacts(info.name, info.rows, info.counts.get("passed", 0), costs_of(info.counts), info.root == corpus.root)
            for info in infos
            if info.kind == FILTER
        ),
        view=select_view(corpus, filters, split).costs if filters else (),
        columns=tuple(
            ColumnFacts(info.name, info.kind, info.type, info.rows, info.rule, info.root == corpus.root) for info in infos
        ),
    )


def histogram(name: str, unit: str, values: pa.Array | pa.ChunkedArray) -> Histogram | None:
    """The histogram of numbers; None where there are none."""
    numbers: NDArray[np.float64] = (
        np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False)) if len(values) else np.array([])
    )
    if not len(numbers):
        return None
    quantiles = np.quantile(numbers, QUANTILES, method="nearest")
    low, high = float(numbers.min()), float(np.quantile(numbers, 0.99, method="nearest"))
    whole = bool(np.all(numbers == np.rint(numbers)))
    if whole:  # a bin a number, or as many numbers in each
        step = max(1, int(np.ceil((high - low + 1) / BINS)))
        edges = np.arange(low, high + step + 1, step)[: int((high - low) // step) + 2]
    else:
        edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    found, _ = np.histogram(np.minimum(numbers, np.nextafter(edges[-1], low)), edges)
    return Histogram(
        name, unit, tuple(edges.tolist()), tuple(found.tolist()), tuple(float(value) for value in quantiles), float(numbers.mean())
    )


def words(texts: pa.Array) -> pa.Array:
    return pc.list_value_length(pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts)))


def counts(values: pa.Array | pa.ChunkedArray) -> dict[Any, int]:
    """How often each value occurs, the most frequent first."""
    pairs = [(pair["values"], pair["counts"]) for pair in pc.value_counts(values).to_pylist()]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def costs_of(counted: Mapping[str, int]) -> dict[str, int]:
    return {key.removeprefix("cost/"): count for key, count in counted.items() if key.startswith("cost/")}


def total(values: pa.ChunkedArray) -> int:
    return int(pc.sum(values).as_py() or 0)


def nonzero(values: pa.Array | pa.ChunkedArray) -> int:
    return int(pc.sum(pc.not_equal(values, 0)).as_py() or 0)


@dataclass(frozen=True)
class Sample:
    """A row to look at."""

    row: int
    key: str
    captions: tuple[str, ...]
    labels: tuple[str, ...]


def draw_samples(corpus: Corpus, split: str | None, count: int, seed: int) -> list[Sample]:
    """Rows of a split, drawn by a seed, in the order of the corpus."""
    rows = corpus.select(split)
    drawn: Sequence[int] = sorted(np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False).tolist())
    samples = []
    for index in drawn:
        row = corpus.row(index)
        names = tuple(corpus.class_names.get(label) or str(label) for label in row.labels)
        samples.append(Sample(index, row.key, row.captions, names))
    return samples


def as_json(description: Description) -> dict[str, Any]:
    """The description as plain JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(description, default=lambda value: vars(value)))
    return plain
