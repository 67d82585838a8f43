"""The one training loop, for every objective, at any world size, under Ray Train, torchrun or alone.

Ways in which a run starts, in order: (1) its artifact exists: nothing to do; (2) a complete checkpoint exists: go on from its step;
(3) from the seed. What a step is, is in `rank.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed import ledger
from sightline.pipelines.feed.inline import Feed, InlineFeed
from sightline.pipelines.train import checkpoints
from sightline.pipelines.train.finish import write_artifact
from sightline.pipelines.train.rank import Step, set_up
from sightline.pipelines.train.spec import Launch, RunSpec


@dataclass(frozen=True)
class Hooks:
    """What the surroundings of a run want to know, and what they know.

    Attributes:
        report: gets rank 0's steps.
        say: gets what a person should know, on rank 0.
        leaving: whether this worker is about to be taken away; called by all ranks in each step.
        stop_when_leaving: end once that is so and the state is saved, rather than train on until it happens.
        feed: another way to the batches of an inline feed.
    """

    report: Callable[[Step], None] = lambda step: None
    say: Callable[[str], None] = lambda line: None
    leaving: Callable[[], bool] = lambda: False
    stop_when_leaving: bool = False
    feed: Callable[[InlineFeed], Feed] = lambda feed: feed


def train(spec: RunSpec, launch: Launch, corpus: Corpus, hooks: Hooks = Hooks()) -> list[Step]:
    """Train on this rank of an initialised process group; on rank 0, end with the artifact in `launch.run_dir`.

    Returns:
        The steps that this call did (none if it only had to finish).

    Raises:
        ValueError: there are more workers than samples in a global batch, or what was asked for does not fit the device.
        FloatingPointError: a loss that is not finite; the last checkpoint stays as it was.
        OSError: a checkpoint could not be written; the one before it stays as it was.
        KeyboardInterrupt: a worker is leaving, and the state is saved.
    """
    rank = set_up(spec, launch, corpus, hooks.say)
    found = rank.checkpoints.newest()
    if found:
        checkpoints.load(found, rank.state)
    first, read, loss = (found.step, found.read, found.loss) if found else (0, ledger.origin(spec.order_key), float("nan"))

    done: list[Step] = []
    warned = False
    try:
        with (
            profiler(launch, rank.share.rank, first) as traced,
            closing(hooks.feed(rank.feed).batches(first, spec.steps)) as batches,
        ):
            rank.clock.take()
            for step in range(first, spec.steps):
                rank.clock.enter("data")
                batch = next(batches)
                done.append(rank.take(step, batch, read, hooks.leaving()))
                read, loss = done[-1].read, done[-1].loss
                if rank.share.rank == 0:
                    hooks.report(done[-1])
                rank.clock.enter("checkpoint")
                leaving, warned = rank.leaving and not warned, rank.leaving
                if leaving or (step + 1) % launch.checkpoint_every == 0 or step + 1 == spec.steps:
                    rank.checkpoints.begin(step + 1, loss, read, rank.state)
                if leaving:
                    rank.checkpoints.finish()
                    if rank.share.rank == 0:
                        hooks.say(f"a worker is about to be taken away: step {step + 1:,} is saved")
                    if hooks.stop_when_leaving and step + 1 < spec.steps:
                        raise KeyboardInterrupt
                rank.clock.enter("other")
                traced()
    finally:
        rank.checkpoints.close()
    if rank.state.ema:
        rank.state.ema.store(rank.state.towers)
    write_artifact(spec, launch, corpus, rank.state.towers, rank.trunk, rank.text, loss)
    return done


@contextmanager
def profiler(launch: Launch, rank: int, first: int) -> Iterator[Callable[[], None]]:
    """What to call after each step, so that rank 0 leaves a trace of the steps that were asked for in `run_dir/profile`."""
    start, end = launch.profile or (0, 0)
    if not launch.profile or rank or end <= first:
        yield lambda: None
        return
    start = max(start - 1, first)  # steps count from one
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if launch.gpus else [])
    plan = schedule(wait=max(0, start - first - 1), warmup=min(1, start - first), active=end - start, repeat=1)
    with profile(
        activities=activities,
        schedule=plan,
        on_trace_ready=tensorboard_trace_handler(str(launch.run_dir / "profile"), f"steps-{start + 1}-{end}"),
    ) as tracing:
        yield tracing.step
