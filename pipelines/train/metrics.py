"""What each step reported: JSON lines that survive a kill, and the same figures for whatever shows curves.

`metrics.jsonl` is the record: one line a step, never rewritten. A resumed run repeats the steps after its checkpoint, with the same
numbers. Trackers see a step once it is in the record; they are for people, and nothing is read back from them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import Launch, RunSpec, canonical_json

NAME = "metrics.jsonl"


class Tracker(Protocol):
    """Something that shows curves."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


@contextmanager
def record(spec: RunSpec, launch: Launch) -> Iterator[Callable[[Step], None]]:
    """A function that writes down a step, for the time of one attempt; rank 0 alone calls it."""
    began, path = time.time(), launch.run_dir / NAME
    cut_off = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    trackers: list[Tracker] = []
    # Line-buffered: a line is one write, so that a killed run keeps its steps.
    with path.open("a", buffering=1) as file:

        def write(step: Step) -> None:
            nonlocal cut_off
            if cut_off:  # by a kill, in an attempt before this one
                file.write("\n")
                cut_off = False
            if not trackers:
                trackers.extend(open_trackers(spec, launch))
            line = asdict(step)
            file.write(json.dumps(line | {"at": time.time(), "began": began}) + "\n")
            figures = {name: float(value) for name, value in line.items() if isinstance(value, (int, float)) and name != "step"}
            figures |= {f"seconds/{part}": value for part, value in step.seconds.items()}
            for tracker in trackers:
                tracker.log(step.step, figures)

        try:
            yield write
        finally:
            for tracker in trackers:
                tracker.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's record, in the order in which they were written; one that a kill cut off is left out.

    Raises:
        FileNotFoundError: the run has no record.
    """
    found = []
    for line in (run_dir / NAME).read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def open_trackers(spec: RunSpec, launch: Launch) -> list[Tracker]:
    """The trackers that the run was asked for."""
    makers: dict[str, Callable[[RunSpec, Launch], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
    return [makers[name](spec, launch) for name in launch.track]


class TensorBoard:
    """Event files in the run's folder, for `tensorboard --logdir RUNS`."""

    def __init__(self, spec: RunSpec, launch: Launch) -> None:
        from tensorboardX import SummaryWriter  # comes with ray[train]

        self._writer = SummaryWriter(str(launch.run_dir / "tensorboard"), flush_secs=10)
        self._writer.add_text("run", f"```json\n{run_json(spec)}\n```")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run; its address and key come from its own settings. A resumed run goes on in the same curves."""

    def __init__(self, spec: RunSpec, launch: Launch) -> None:
        import wandb

        self._run = wandb.init(
            project="sightline",
            id=spec.run_id,
            name=f"{spec.recipe}-{spec.run_id}",
            resume="allow",
            config=json.loads(run_json(spec)),
            dir=str(launch.run_dir),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """An MLflow run; where it goes is MLflow's own setting (MLFLOW_TRACKING_URI)."""

    def __init__(self, spec: RunSpec, launch: Launch) -> None:
        import mlflow

        mlflow.set_experiment("sightline")
        self._mlflow = mlflow
        name = f"{spec.recipe}-{spec.run_id}"
        found = mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list")
        mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=name)
        if not found:
            mlflow.log_dict(json.loads(run_json(spec)), "run.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self._mlflow.end_run()


def run_json(spec: RunSpec) -> str:
    return canonical_json(asdict(spec))
