"""A filter: a mask column, its rule, and what each of its conditions costs.

A row passes if it holds all conditions, each judged over the whole corpus: duplicates and the best scores are looked for
among all rows, whatever the other conditions say. Conditions on one row alone are computed for shards that lack them;
duplicates and `top` see all rows, so they are made again after an append.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sightline.pipelines.corpus.columns import (
    ColumnInfo,
    Rule,
    column_info,
    commit_column,
    key_of,
    missing,
    parts,
    read_column,
    read_sidecar,
    write_part,
)
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.curate.against import Against, open_against
from sightline.pipelines.curate.duplicates import check_distance, codes, first_of_each, near_groups, precedence
from sightline.pipelines.curate.rules import COLUMNS, Mask, RowRules, check_languages, check_names, conditions

DISTANCE = 6
PHASH = "phash"  # the column of perceptual hashes


@dataclass(frozen=True)
class FilterSpec:
    """What a row must be to pass.

    Attributes:
        rows: conditions on the row alone.
        duplicates: keep one row of those with the same image and captions (`pairs`), the same image bytes (`exact`) or
            perceptual hashes within `distance` bits (`near`; None is 6).
        score: a column of numbers; `minimum` and `maximum` bound it, `top` is the share of the corpus with the highest ones.
        against: corpora of whose images none may be here, by bytes or by perceptual hashes within `distance` bits.
    """

    rows: RowRules = field(default_factory=RowRules)
    duplicates: Literal["pairs", "exact", "near"] | None = None
    distance: int | None = None
    score: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    top: float | None = None
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        bounds = (self.minimum, self.maximum, self.top)
        if self.score is None and bounds != (None, None, None):
            raise ValueError("a minimum, maximum or top is of a score; give --score COLUMN too")
        if self.score is not None and bounds == (None, None, None):
            raise ValueError(f"which {self.score}? give --min, --max or --top")
        if self.top is not None and not 0 < self.top <= 1:
            raise ValueError(f"top={self.top}; give a share, as 0.3 for the best 30 %")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum={self.minimum} and maximum={self.maximum}: no score is so; give a lower minimum")
        if self.distance is not None and self.duplicates != "near" and not self.against:
            raise ValueError("a distance is of look-alikes; give --duplicates near or --against CORPUS too")
        check_distance(self.bits)
        check_languages(self.rows.languages)

    @property
    def bits(self) -> int:
        """In how many bits the perceptual hashes of look-alikes may differ."""
        return DISTANCE if self.distance is None else self.distance


def make_filter(corpus: Corpus, name: str, spec: FilterSpec) -> ColumnInfo:
    """Write the filter's column, or what is missing of it; with `against` also NAME-match, which names what each row is too like.

    Raises:
        ValueError: nothing is asked for, no row has a format or split of that name, or a column that it needs is missing or of
            other rows.
        FileNotFoundError: there is no corpus to compare with.
    """
    if spec.rows.formats:
        check_names(spec.rows.formats, pc.unique(corpus.sidecar(["format"])["format"]).to_pylist(), "format")
    check_names(spec.rows.splits, corpus.splits if spec.rows.splits else (), "split")
    against = open_against(spec.against, spec.bits, phash_info(corpus)) if spec.against else None
    rule = rule_of(corpus, spec, against)
    if not rule.params:
        raise ValueError("this filter would keep every row; give at least one condition")
    store, wanted = open_store(corpus.location), parts(corpus, name, rule)
    todo = missing(store, wanted)
    matches = None
    if against is not None:
        matches = Rule("match", {"against": against.roots, "distance": spec.bits, **hashed(corpus)}, pa.string())
        match_parts = parts(corpus, f"{name}-match", matches)
        absent = {part.index for part in (*todo, *missing(store, match_parts))}
        todo = [part for part in wanted if part.index in absent]
    whole = dict(over_all(corpus, spec)) if todo else {}
    values = read_column(corpus, spec.score).to_numpy() if spec.score and todo else None
    hashes = read_column(corpus, PHASH).to_numpy() if against is not None and todo else None
    for part in todo:
        here = slice(part.start, part.stop)
        table = read_sidecar(store, part.shard, [*COLUMNS, "sha256"])
        found = conditions(spec.rows, table) | {condition: mask[here] for condition, mask in whole.items()}
        if values is not None and spec.minimum is not None:
            found["minimum"] = values[here] >= spec.minimum
        if values is not None and spec.maximum is not None:
            found["maximum"] = values[here] <= spec.maximum
        if against is not None and hashes is not None:
            keys = against.matches(table["sha256"].to_pylist(), hashes[here])
            found["against"] = np.array([key is None for key in keys], dtype=np.bool_)
            write_part(
                store, match_parts[part.index], pa.array(keys, pa.string()), {"matched": sum(key is not None for key in keys)}
            )
        mask = reduce(np.logical_and, found.values(), np.ones(part.shard.rows, np.bool_))
        costs = {f"cost/{condition}": int((~held).sum()) for condition, held in found.items()}
        write_part(store, part, pa.array(mask, pa.bool_()), {"passed": int(mask.sum()), **costs})
    if matches is not None:
        commit_column(corpus, f"{name}-match", matches)
    return commit_column(corpus, name, rule, ("py3langid",) if spec.rows.languages else ())


def rule_of(corpus: Corpus, spec: FilterSpec, against: Against | None) -> Rule:
    """The filter's rule: its conditions, and the rules of the columns that they read."""
    params: dict[str, Any] = dict(spec.rows.params)
    per_row = spec.duplicates is None and spec.top is None
    if spec.duplicates is not None:
        params["duplicates"] = spec.duplicates
    if against is not None:
        params["against"] = against.roots
    if spec.duplicates == "near" or against is not None:
        params |= {"distance": spec.bits, **hashed(corpus)}
    if spec.score is not None:
        info = column_info(corpus, spec.score)
        if info.type not in ("float", "double"):
            raise ValueError(
                f"the column {spec.score!r} holds {info.type} and no scores; name one that `sightline corpus score` made"
            )
        bounds = {"minimum": spec.minimum, "maximum": spec.maximum, "top": spec.top}
        params["score"] = {"column": key_of(info, corpus.root)} | {key: value for key, value in bounds.items() if value is not None}
        per_row = per_row and info.per_row
    return Rule("filter", params, pa.bool_(), per_row)


def hashed(corpus: Corpus) -> dict[str, str]:
    """Which perceptual hashes are compared."""
    return {PHASH: key_of(phash_info(corpus), corpus.root)}


def phash_info(corpus: Corpus) -> ColumnInfo:
    try:
        info = column_info(corpus, PHASH)
    except ValueError:
        info = None
    if info is None or info.kind != PHASH:
        raise ValueError(
            f"{corpus.location} has no perceptual hashes; run `sightline corpus score {corpus.location} {PHASH} --phash`"
        )
    return info


def over_all(corpus: Corpus, spec: FilterSpec) -> Iterator[tuple[str, Mask]]:
    """The conditions that compare rows with each other, each over all rows."""
    if spec.duplicates is None and spec.top is None:
        return
    table = corpus.sidecar(["uid", "key", "sha256"])
    places = precedence(table)
    if spec.duplicates is not None:
        groups: dict[str, Callable[[], Any]] = {
            "pairs": lambda: codes(table["uid"]),
            "exact": lambda: codes(table["sha256"]),
            "near": lambda: near_groups(read_column(corpus, PHASH).to_numpy(), spec.bits),
        }
        yield "duplicates", first_of_each(groups[spec.duplicates](), places)
    if spec.top is not None:
        assert spec.score is not None
        yield "top", best(read_column(corpus, spec.score).to_numpy(), spec.top, places)


def best(values: Any, share: float, places: Any) -> Mask:
    """The rows with the highest values, a share of all rows; ties go by (uid, key), and a row without a value never passes."""
    order = np.lexsort((places, -values))  # NaN comes last
    mask = np.zeros(len(values), np.bool_)
    mask[order[: round(share * len(values))]] = True
    return np.asarray(mask & ~np.isnan(values), dtype=np.bool_)
