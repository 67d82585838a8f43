"""Did a run read what its plan says? The ledger's links that it left behind against those of the plan alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.ledger import replay
from sightline.pipelines.train.spec import from_json, samples_of, select_rows

UID_BYTES = 16


@dataclass(frozen=True)
class RunCheck:
    """What was found.

    Attributes:
        run: its folder.
        root: of the corpus.
        steps: how many steps the run has done, of how many planned.
        each: what an epoch goes through once: rows, one an `image`, or each `pair` of an image and a caption.
        samples: how many of these there are.
        times: how often each was read; the first `again` of the last epoch once more.
        differs: the first step whose link is not the plan's, or is missing; None where there is none.
    """

    run: str
    root: str
    steps: int
    planned: int
    each: str
    samples: int
    times: int
    again: int
    differs: int | None

    @property
    def verdict(self) -> str:
        if self.differs is not None:
            return f"step {self.differs:,} is the first one that did not read what its plan says, or left no record of it"
        each = f"each of {self.samples:,} {'rows' if self.each == 'image' else 'pairs'} was read exactly {self.times:,} times"
        return f"{each}, and {self.again:,} of them once more (the epoch goes on)" if self.again else each


def verify_run(run: Path, corpus: str | None = None) -> RunCheck:
    """Compare every recorded step of a run with its plan.

    Args:
        corpus: where the corpus is now; by default where it was.

    Raises:
        FileNotFoundError: the folder is no run's, or the corpus is not there.
        ValueError: the corpus has no generation with the run's root, or the records cannot be read.
    """
    try:
        spec = from_json((run / "run.json").read_text())
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{run} is no run that has begun: no {Path(error.filename).name}; name a folder of --runs"
        ) from None
    opened = Corpus.open(corpus or spec.data.corpus, spec.data.root)
    rows, _ = select_rows(opened, spec.data)
    column = opened.sidecar(["uid"]).column("uid").combine_chunks()
    samples = samples_of(opened, rows, spec.data)
    uids = np.frombuffer(b"".join(column.take(rows).to_pylist()), np.uint8).reshape(len(rows), UID_BYTES)
    found: dict[int, set[str]] = {}
    for line in lines:
        record = recorded(line)
        if record is not None:  # the last line of a killed run may be cut
            found.setdefault(record[0], set()).add(record[1])
    steps = max(found, default=0)
    links = replay(samples, uids, spec.order_key, spec.global_batch, steps)
    differs = next((step for step, link in enumerate(links, start=1) if found.get(step) != {link}), None)
    times, again = divmod(steps * spec.global_batch, len(samples))
    return RunCheck(str(run), spec.data.root, steps, spec.steps, spec.data.each, len(samples), times, again, differs)


def recorded(line: str) -> tuple[int, str] | None:
    """A step and its link; None where the line is not whole."""
    try:
        values = json.loads(line)
        return int(values["step"]), str(values["read"])
    except (ValueError, KeyError, TypeError):
        return None
