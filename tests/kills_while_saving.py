"""Processes killed while they save: after each kill the newest checkpoint must load, and hold what was saved at its step.

The child forms a group of one, saves again and again, as training does (beside changing weights), and dies by SIGKILL at a moment
that nobody chose. Weights are a function of the step, so that a checkpoint which mixes two steps shows.
"""

from __future__ import annotations

import multiprocessing
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from sightline.pipelines.train import checkpoints
from sightline.pipelines.train.checkpoints import Checkpoint, Checkpoints, State

RUN = "killed"
WIDTH = 512
DEADLINE_S = 60


@dataclass(frozen=True)
class KilledSaves:
    """What came of it.

    Attributes:
        unloadable: kills after which the newest checkpoint did not load, or did not hold what its step had.
        steps_kept: the newest step after the last kill.
    """

    kills: int
    unloadable: int
    steps_kept: int


def killed_saves(folder: Path, kills: int, seed: int) -> KilledSaves:
    """Kill a saving process so many times, each within a second of its first save."""
    chance, context = random.Random(seed), multiprocessing.get_context("fork")
    torch.set_num_threads(1)  # a fork of a process with busy threads would hang in them
    unloadable = kept = 0
    for _ in range(kills):
        reader, writer = context.Pipe(duplex=False)
        child = context.Process(target=_save_for_ever, args=(folder, kept, writer))
        child.start()
        assert reader.poll(DEADLINE_S), "the child did not begin to save"
        time.sleep(chance.random())  # the moment of death, not a wait for anything
        child.kill()
        child.join()
        found = checkpoints.newest(folder, RUN)
        if found is not None:
            assert found.step >= kept, "a newer checkpoint was lost"
            kept = found.step
            loaded = context.Queue()
            check = context.Process(target=_holds_its_step, args=(found, loaded))
            check.start()
            check.join(DEADLINE_S)
            unloadable += check.exitcode != 0
    return KilledSaves(kills, unloadable, kept)


def _state(step: int) -> State:
    towers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
    optimizer = torch.optim.AdamW(towers.parameters(), lr=0.0)
    _set(towers, step)
    return State(towers, optimizer)


def _set(towers: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.fill_(float(step))


def _join_alone() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]


def _save_for_ever(folder: Path, step: int, started: object) -> None:
    _join_alone()
    state, saves = _state(step), Checkpoints(folder, RUN)
    while True:
        step += 1
        saves.copied()
        _set(state.towers, step)
        saves.begin(step, 0.0, f"{step:016x}", state)
        started.send(step)  # type: ignore[attr-defined]


def _holds_its_step(found: Checkpoint, _: object) -> None:
    _join_alone()
    state = _state(-1)
    checkpoints.load(found, state)
    assert all(bool((parameter == found.step).all()) for parameter in state.towers.parameters())
