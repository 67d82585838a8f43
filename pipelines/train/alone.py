"""The same run without Ray: in this process, or in those that `torchrun` started; for debuggers, profilers and other schedulers.

What a worker does is `loop.train`, as under Ray, so the numbers are the same. Nobody restarts anything here: on SIGTERM (which
schedulers send before they take a machine away) and on Ctrl-C the run saves after its step and ends; the same command goes on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from sightline.models.artifact import DESCRIPTION
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.checkpoints import newest, write_atomically
from sightline.pipelines.train.loop import Hooks, train
from sightline.pipelines.train.metrics import record
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.report import TrainReport, report_on
from sightline.pipelines.train.spec import Launch, RunSpec, canonical_json

TIMEOUT = timedelta(seconds=300)  # a lost peer is noticed at once; a hung one only by this


@contextmanager
def process_group(*, gpus: bool) -> Iterator[int]:
    """This process' rank among those of torchrun, or 0 of one."""
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    if dist.is_torchelastic_launched():
        dist.init_process_group(backend, timeout=TIMEOUT)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)  # type: ignore[attr-defined]
    try:
        if gpus:
            torch.cuda.set_device(dist.get_node_local_rank(fallback_rank=0))
        yield dist.get_rank()
    finally:
        dist.destroy_process_group()


def run(
    spec: RunSpec,
    launch: Launch,
    show: Callable[[Step], None] = lambda step: None,
    say: Callable[[str], None] = lambda line: None,
) -> TrainReport | None:
    """Train a resolved spec to its artifact; the same call again resumes or returns at once. Called on all ranks.

    Returns:
        What the run came to, on rank 0; None on the others.

    Raises:
        ValueError: what the spec asks for cannot be done.
        KeyboardInterrupt: the run was told to end, and its state is saved.
    """
    with process_group(gpus=launch.gpus) as rank, told_to_end() as ending:
        if not launch.gpus:
            torch.set_num_threads(launch.threads)
        start = newest(launch.saved_at, spec.run_id)
        steps: list[Step] = []
        if not (launch.run_dir / "artifact" / DESCRIPTION).is_file():
            if rank == 0:
                launch.run_dir.mkdir(parents=True, exist_ok=True)
                write_atomically(launch.run_dir / "run.json", canonical_json(asdict(spec)) + "\n")
            dist.barrier()
            corpus = Corpus.open(spec.data.corpus, spec.data.root)
            with record(spec, launch) as write:

                def report(step: Step) -> None:
                    write(step)
                    show(step)

                try:
                    steps = train(spec, launch, corpus, Hooks(report, say, ending.is_set, stop_when_leaving=True))
                except FloatingPointError as error:
                    raise ValueError(str(error)) from None
        return report_on(spec, launch, start.step if start else 0, steps) if rank == 0 else None


@contextmanager
def told_to_end() -> Iterator[threading.Event]:
    """Set by SIGTERM and by the first Ctrl-C; a second Ctrl-C ends at once."""
    ending = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        if ending.is_set() and number == signal.SIGINT:
            os._exit(130)
        ending.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield ending
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
