"""Where a run's seconds went. Every moment belongs to exactly one part, so the parts sum to the wall time.

The parts of a step are `data` (waiting for the next batch), `compute` (forward and backward, with the exchange of embeddings and
FSDP's traffic inside them, which overlaps with computing), `communication` (the collectives that the step waits for by themselves:
norm, loss, ledger), `checkpoint` (held up by a save) and `other` (update, report). `goodput` adds what only the whole run shows:
`start`, `restart` (from the last step before an interruption to the first one after it) and `redone` (steps that an interruption
lost). Evaluation runs beside the steps and holds none of them up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

PARTS = ("data", "compute", "communication", "checkpoint", "other")


class Clock:
    """Counts seconds for the part that was entered last."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._part, self._since = now, "other", now()
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: str) -> None:
        assert part in PARTS, part
        now = self._now()
        self._seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call."""
        self.enter(self._part)
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken


@dataclass(frozen=True)
class Goodput:
    """A run's wall time, over all its attempts, by parts that sum to it.

    Attributes:
        wall_s: from the first attempt's start to the last step's end.
        seconds: by part.
    """

    wall_s: float
    seconds: Mapping[str, float]

    @property
    def share(self) -> float:
        """The part of the wall time in which steps that counted were computed and exchanged."""
        return (self.seconds["compute"] + self.seconds["communication"]) / self.wall_s if self.wall_s else 0.0


def goodput(lines: Iterable[Mapping[str, Any]]) -> Goodput:
    """From the lines of `metrics.jsonl`, in the order in which they were written.

    Each has `step`, `seconds` (by part), `at` (when the step ended, Unix time) and `began` (when its attempt started).
    """
    steps = list(lines)
    if not steps:
        return Goodput(0.0, dict.fromkeys((*PARTS, "start", "restart", "redone"), 0.0))
    last = {line["step"]: i for i, line in enumerate(steps)}
    seconds = dict.fromkeys((*PARTS, "start", "restart", "redone"), 0.0)
    end = steps[0]["began"]
    for i, line in enumerate(steps):
        took = sum(line["seconds"].values())
        idle = line["at"] - took - end
        seconds["start" if i == 0 else "restart" if line["began"] != steps[i - 1]["began"] else "other"] += idle
        if last[line["step"]] == i:
            for part, spent in line["seconds"].items():
                seconds[part] += spent
        else:
            seconds["redone"] += took
        end = line["at"]
    return Goodput(end - steps[0]["began"], seconds)
