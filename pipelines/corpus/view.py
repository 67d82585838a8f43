"""A view: the rows of a corpus that pass all of some filters.

It is row indices and a digest, and no copy. The digest is over the root, the split, the filters with their rules and the rows
themselves, so whoever records it can tell later whether a filter of that name still means the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from sightline.pipelines.corpus.columns import column_info, read_mask
from sightline.pipelines.corpus.digests import lp
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import canonical_json


@dataclass(frozen=True)
class Cost:
    """What a filter takes out: `alone` of the split's rows, `after` of what the filters before it left; `left` remain."""

    name: str
    alone: int
    after: int
    left: int


@dataclass(frozen=True)
class View:
    """The rows (global indices, ascending) that pass all filters `names`, in the order in which they were given.

    Attributes:
        digest: 64 hex digits; the filters' order does not count.
        costs: per filter.
    """

    names: tuple[str, ...]
    rows: NDArray[np.int64]
    digest: str
    costs: tuple[Cost, ...]


def select_view(corpus: Corpus, filters: Sequence[str], split: str | None = None) -> View:
    """The rows of a split that pass all filters.

    Raises:
        ValueError: there is no such filter or split, or a filter was made for other rows.
    """
    rows = corpus.select(split)
    split_rows, costs, rules = rows, [], []
    for name in dict.fromkeys(filters):
        mask, info = read_mask(corpus, name), column_info(corpus, name)
        before, rows = len(rows), rows[mask[rows]]
        costs.append(Cost(name, int((~mask[split_rows]).sum()), before - len(rows), len(rows)))
        rules.append([name, info.kind, info.rule])
    said = canonical_json([corpus.root, split, sorted(rules, key=lambda rule: str(rule[0]))])
    digest = sha256(b"sl-view-1" + lp(said.encode()) + rows.astype("<i8").tobytes()).hexdigest()
    return View(tuple(cost.name for cost in costs), rows, digest, tuple(costs))
