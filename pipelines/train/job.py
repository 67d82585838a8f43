"""Training on Ray Train: Ray places the workers, joins them into a process group and restarts them; it decides no number.

Each worker opens the corpus by itself and runs `loop.train`. Checkpoints are the loop's own, with their own marker of
completeness: a restarted worker, and the same command given again, both go on from the newest complete one. Steps are
reported through a small actor, because `ray.train.report` is a barrier that takes seconds.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sightline.models.artifact import DESCRIPTION, describe
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.checkpoints import newest, write_atomically
from sightline.pipelines.train.loop import Step, train
from sightline.pipelines.train.spec import Launch, RunSpec, canonical_json, from_json

POLL_S = 0.5
# A lost peer is noticed at once; a hung one only by this. Ray's default of 1,800 s would leave a cluster idle for half an hour.
COLLECTIVE_TIMEOUT_S = 300


@dataclass(frozen=True)
class TrainReport:
    """What a run came to. `samples_per_s` is the median over this call's steps; None where it had none left to do."""

    artifact: Path
    run_id: str
    steps: int
    resumed_from: int
    final_loss: float
    samples_per_s: float | None


@dataclass(frozen=True)
class Stopped:
    """Why the workers gave up."""

    why: str


News = Step | str | Stopped


class Progress:
    """Where rank 0 leaves its steps and what it has to say, and the driver picks them up."""

    def __init__(self) -> None:
        self._news: list[News] = []

    def push(self, news: News) -> None:
        self._news.append(news)

    def since(self, count: int) -> list[News]:
        return self._news[count:]


def run(
    spec: RunSpec,
    launch: Launch,
    show: Callable[[Step], None] = lambda step: None,
    say: Callable[[str], None] = lambda line: None,
) -> TrainReport:
    """Train a resolved spec to its artifact on the Ray that is connected; the same call again resumes or returns at once.

    `show` gets each step, `say` each line that a person should read.

    Raises:
        ValueError: what the spec asks for cannot be done (the message of the worker that found out).
        RuntimeError: training failed for another reason; the checkpoints stay.
    """
    if spec.global_batch < launch.workers:
        raise ValueError(
            f"global_batch={spec.global_batch} gives {launch.workers} workers nothing to do; give --workers {spec.global_batch}, "
            "or a larger global_batch"
        )
    artifact = launch.run_dir / "artifact"
    start = newest(launch.run_dir / "checkpoints", spec.run_id)
    first = start.step if start else 0
    steps: list[Step] = []
    if not (artifact / DESCRIPTION).is_file():
        launch.run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(launch.run_dir / "run.json", canonical_json(asdict(spec)) + "\n")
        steps = _fit(spec, launch, show, say)
    rates = sorted(step.samples_per_s for step in steps)
    return TrainReport(
        artifact=artifact,
        run_id=spec.run_id,
        steps=spec.steps,
        resumed_from=first,
        final_loss=float(describe(artifact).provenance["final_loss"]),
        samples_per_s=rates[len(rates) // 2] if rates else None,
    )


def _fit(spec: RunSpec, launch: Launch, show: Callable[[Step], None], say: Callable[[str], None]) -> list[Step]:
    # On this node: it lives exactly as long as the one that looks at it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Progress).remote()
    seen: list[News] = []
    finished = threading.Event()

    def pull() -> None:
        for news in ray.get(progress.since.remote(len(seen))):
            seen.append(news)
            if isinstance(news, str):
                say(news)
            elif isinstance(news, Step):
                show(news)

    def watch() -> None:
        while not finished.wait(POLL_S):
            pull()

    trainer = TorchTrainer(
        _worker,
        train_loop_config={"spec": canonical_json(asdict(spec)), "launch": launch, "progress": progress},
        torch_config=TorchConfig(backend="nccl" if launch.gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=launch.workers,
            use_gpu=launch.gpus,
            resources_per_worker={"CPU": launch.threads} | ({"GPU": 1} if launch.gpus else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(launch.run_dir.resolve()),
            failure_config=FailureConfig(max_failures=launch.retries),
        ),
    )
    watcher = threading.Thread(target=watch, daemon=True, name="training-progress")
    watcher.start()
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _as_the_users(error) from error
    finally:
        finished.set()
        watcher.join()
    pull()
    ray.kill(progress)
    for news in seen:
        if isinstance(news, Stopped):
            raise ValueError(news.why)
    return [news for news in seen if isinstance(news, Step)]


def _worker(config: dict[str, Any]) -> None:
    """One rank: what Ray Train calls."""
    spec, launch, progress = from_json(config["spec"]), config["launch"], config["progress"]
    if not launch.gpus:
        # One process a worker: share the CPUs that Ray gave out rather than fight for all of them.
        torch.set_num_threads(launch.threads)
    corpus = Corpus.open(spec.data.corpus, spec.data.root)
    # Line-buffered, so that a killed run keeps its steps. A resumed run repeats those after its checkpoint, with the same numbers.
    with (launch.run_dir / "metrics.jsonl").open("a", buffering=1) as metrics:

        def report(step: Step) -> None:
            metrics.write(json.dumps(asdict(step)) + "\n")
            progress.push.remote(step)

        try:
            train(spec, launch, corpus, report, progress.push.remote)
        except FloatingPointError as error:  # on all ranks at once, and again in every attempt: nothing to retry
            ray.get(progress.push.remote(Stopped(str(error))))
    ray.train.report({"steps": spec.steps})


def _as_the_users(error: TrainingFailedError) -> Exception:
    """A worker's ValueError is the user's to mend and keeps its words; anything else is a failed run."""
    causes = list(getattr(error, "worker_failures", {}).values())
    for cause in causes:
        if isinstance(cause, (ValueError, OSError)):
            return cause
    return RuntimeError(str(causes[0]) if causes else str(error))
