"""Training on Ray Train: Ray places the workers, joins them into a process group and restarts them; it decides no number.

Each worker opens the corpus by itself and runs `loop.train`. Checkpoints are the loop's own, with their own marker of
completeness: a restarted worker, and the same command given again, both go on from the newest complete one. Steps are
reported through a small actor, because `ray.train.report` is a barrier that takes seconds. For the same reason checkpoints are not
evaluated by Ray Train's validation, which needs such a report: the driver finds complete ones and gives each to a Ray task.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sightline.models.artifact import DESCRIPTION
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import Feed, InlineFeed
from sightline.pipelines.feed.job import RayFeed
from sightline.pipelines.train.checkpoints import Place, newest, prune, write_atomically
from sightline.pipelines.train.loop import Hooks, train
from sightline.pipelines.train.metrics import record
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.report import TrainReport, report_on
from sightline.pipelines.train.spec import Launch, RunSpec, canonical_json, from_json
from sightline.pipelines.train.validate import validate, waiting

POLL_S = 0.5
NOTICE_EVERY = 10  # steps between two questions to Ray whether a machine is about to go
LOOK_S = 5.0  # between two looks for checkpoints that were not evaluated yet
RESIZE_LOOK_S = 30.0  # between two looks for room for more workers; a change costs a restart
# A lost peer is noticed at once; a hung one only by this. Ray's default of 1,800 s would leave a cluster idle for half an hour.
COLLECTIVE_TIMEOUT_S = 300


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
        ConnectionError: Ray itself was lost; the checkpoints stay.
        RuntimeError: training failed for another reason; the checkpoints stay.
    """
    if spec.global_batch < launch.workers:
        raise ValueError(
            f"global_batch={spec.global_batch} gives {launch.workers} workers nothing to do; give --workers {spec.global_batch}, "
            "or a larger global_batch"
        )
    artifact = launch.run_dir / "artifact"
    start = newest(launch.saved_at, spec.run_id)
    first = start.step if start else 0
    steps: list[Step] = []
    if not (artifact / DESCRIPTION).is_file():
        launch.run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(launch.run_dir / "run.json", canonical_json(asdict(spec)) + "\n")
        steps = _fit(spec, launch, show, say)
    return report_on(spec, launch, first, steps)


def _fit(spec: RunSpec, launch: Launch, show: Callable[[Step], None], say: Callable[[str], None]) -> list[Step]:
    # On this node: it lives exactly as long as the one that looks at it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Progress).remote()
    seen: list[News] = []
    finished, failed = threading.Event(), threading.Event()

    def pull() -> None:
        for news in ray.get(progress.since.remote(len(seen))):
            seen.append(news)
            if isinstance(news, str):
                say(news)
            elif isinstance(news, Step):
                show(news)

    def watch() -> None:
        with suppress(RayError):  # `fit` says it
            while not finished.wait(POLL_S):
                pull()

    threads = [threading.Thread(target=watch, daemon=True, name="training-progress")]
    if launch.evaluate:
        threads.append(
            threading.Thread(target=_evaluate, args=(spec, launch, finished, failed, say), daemon=True, name="evaluation")
        )
    for thread in threads:
        thread.start()
    try:
        try:
            _trainer(spec, launch, progress).fit()
        except BaseException:
            failed.set()
            raise
    except TrainingFailedError as error:
        raise _as_the_users(error) from error
    except RayError as error:
        raise ConnectionError(
            f"Ray was lost ({str(error).splitlines()[0]}); the checkpoints stay, and the same command goes on from the newest"
        ) from error
    finally:
        finished.set()
        for thread in threads:
            thread.join()
    pull()
    ray.kill(progress)
    for news in seen:
        if isinstance(news, Stopped):
            raise ValueError(news.why)
    return [news for news in seen if isinstance(news, Step)]


def _trainer(spec: RunSpec, launch: Launch, progress: Any) -> TorchTrainer:
    """Ray Train's knobs, once."""
    elastic = launch.min_workers is not None and launch.min_workers < launch.workers
    return TorchTrainer(
        _worker,
        train_loop_config={"spec": canonical_json(asdict(spec)), "run_id": spec.run_id, "launch": launch, "progress": progress},
        torch_config=TorchConfig(backend="nccl" if launch.gpus else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=(launch.min_workers, launch.workers) if elastic else launch.workers,
            elastic_resize_monitor_interval_s=RESIZE_LOOK_S,
            use_gpu=launch.gpus,
            resources_per_worker={"CPU": launch.threads} | ({"GPU": 1} if launch.gpus else {}),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(launch.run_dir.resolve()),
            failure_config=FailureConfig(max_failures=launch.retries),
        ),
    )


def _evaluate(
    spec: RunSpec, launch: Launch, finished: threading.Event, failed: threading.Event, say: Callable[[str], None]
) -> None:
    """Give every complete checkpoint to a Ray task, one at a time; after a training that did not fail, those that are left."""
    task = ray.remote(num_cpus=1, num_gpus=0, max_retries=1)(validate)
    without: set[str] = set()
    while True:
        ended = finished.wait(LOOK_S)
        for checkpoint in waiting(spec, launch):
            if checkpoint.path in without:
                continue
            scores = task.remote(spec, launch, checkpoint)
            while not ray.wait([scores], timeout=LOOK_S)[0] and not failed.is_set():
                pass
            if failed.is_set():
                return
            try:
                metrics = ray.get(scores)
            except RayError as error:
                say(f"step {checkpoint.step:,} could not be evaluated, training goes on: {str(error).strip().splitlines()[-1]}")
                without.add(checkpoint.path)
                continue
            say(f"step {checkpoint.step:,} on {launch.evaluate}: {summary(metrics)}")
        if ended:
            prune(Place(launch.saved_at), launch.keep, launch.keep_best)
            return


def summary(metrics: Mapping[str, float]) -> str:
    """The figures that are shares, in one line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items() if isinstance(value, float))


def _worker(config: dict[str, Any]) -> None:
    """One rank: what Ray Train calls."""
    spec, launch, progress = from_json(config["spec"]), config["launch"], config["progress"]
    if spec.run_id != config["run_id"]:  # it would find no checkpoint of its own, and begin again
        raise ValueError("this worker has another version of Sightline than the command; install the same one on every machine")
    if not launch.gpus:
        # One process a worker: share the CPUs that Ray gave out rather than fight for all of them.
        torch.set_num_threads(launch.threads)
    corpus = Corpus.open(spec.data.corpus, spec.data.root)
    with record(spec, launch) as write:

        def report(step: Step) -> None:
            write(step)
            progress.push.remote(step)

        feed: Callable[[InlineFeed], Feed] = partial(RayFeed, actors=launch.feed_actors) if launch.feed_actors else lambda own: own
        hooks = Hooks(report, progress.push.remote, preemption(), feed=feed)
        try:
            train(spec, launch, corpus, hooks)
        except FloatingPointError as error:  # on all ranks at once, and again in every attempt: nothing to retry
            ray.get(progress.push.remote(Stopped(str(error))))
    ray.train.report({"steps": spec.steps})


def preemption() -> Callable[[], bool]:
    """Whether Ray is about to take away one of the workers' machines. All ranks call it equally often, as Ray Train demands of the
    question, which is a round trip; so most calls repeat the last answer."""
    calls, leaving = 0, False

    def ask() -> bool:
        nonlocal calls, leaving
        calls += 1
        if calls % NOTICE_EVERY == 0:
            leaving = ray.train.get_preemption_info() is not None
        return leaving

    return ask


def _as_the_users(error: TrainingFailedError) -> Exception:
    """A worker's ValueError is the user's to mend and keeps its words; anything else is a failed run."""
    causes = list(getattr(error, "worker_failures", {}).values())
    for cause in causes:
        if isinstance(cause, (ValueError, OSError)):
            return cause
    return RuntimeError(str(causes[0]) if causes else str(error))
