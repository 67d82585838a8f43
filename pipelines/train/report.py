"""What a run came to, from what it left behind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sightline.models.artifact import describe
from sightline.pipelines.train.clock import goodput
from sightline.pipelines.train.metrics import read_metrics
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import Launch, RunSpec


@dataclass(frozen=True)
class TrainReport:
    """What a run came to.

    Attributes:
        samples_per_s: the median over this call's steps; None where it had none left to do.
        mfu: likewise; None also where the peak of the device is not known.
        goodput: the share of the run's wall time, over all attempts, in which steps that counted were computed.
        seconds: the run's wall time by parts, see `clock.py`.
    """

    artifact: Path
    run_id: str
    steps: int
    resumed_from: int
    final_loss: float
    samples_per_s: float | None
    mfu: float | None
    goodput: float
    seconds: dict[str, float]


def report_on(spec: RunSpec, launch: Launch, resumed_from: int, steps: Sequence[Step]) -> TrainReport:
    """The report of a finished run, of which this call did `steps`."""
    spent = goodput(read_metrics(launch.run_dir))
    shares = [step.mfu for step in steps if step.mfu is not None]
    return TrainReport(
        artifact=launch.run_dir / "artifact",
        run_id=spec.run_id,
        steps=spec.steps,
        resumed_from=resumed_from,
        final_loss=float(describe(launch.run_dir / "artifact").provenance["final_loss"]),
        samples_per_s=median(step.samples_per_s for step in steps) if steps else None,
        mfu=median(shares) if shares else None,
        goodput=round(spent.share, 4),
        seconds={part: round(seconds, 2) for part, seconds in spent.seconds.items()},
    )
