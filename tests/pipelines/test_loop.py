"""The loop on real gloo processes: the loss curve does not know the world size, and a resumed run ends in the same weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sightline.models.load import load_model
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.ledger import replay
from sightline.pipelines.feed.order import Samples, rows_at
from sightline.pipelines.train import checkpoints
from sightline.pipelines.train.loop import Hooks, train
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import Launch, RunSpec, resolve
from sightline.recipes import find_recipe
from tests.processes import on_ranks

STEPS = 50


def spec_for(corpus: Corpus) -> RunSpec:
    """The demo's recipe, narrower and on batches of 24."""
    spec = find_recipe("clip_demo")
    text = dict(spec.model.text) | {"width": 16}
    model = replace(spec.model, embed_dim=16, text=text)
    data = replace(spec.data, corpus=corpus.location)
    optim = replace(spec.optim, warmup_steps=5)
    spec = replace(spec, model=model, data=data, optim=optim, steps=STEPS, global_batch=24)
    return resolve(spec, corpus, bf16_available=False)


class InterruptedRunError(Exception):
    """Stands for whatever ends a process between two steps."""


def run(spec: RunSpec, launch: Launch, stop_after: int | None = None) -> list[Step]:
    def report(step: Step) -> None:
        if step.step == stop_after:
            raise InterruptedRunError

    try:
        return train(spec, launch, Corpus.open(spec.data.corpus, spec.data.root), Hooks(report))
    except InterruptedRunError:
        return []


def run_twice(spec: RunSpec, launch: Launch) -> list[Step]:
    """Interrupted at step 37 (the last checkpoint is at 30), then run again."""
    assert run(spec, launch, stop_after=37) == []
    return run(spec, launch)


def weights(launch: Launch) -> dict[str, torch.Tensor]:
    return load_file(launch.run_dir / "artifact" / "weights.safetensors")


@pytest.mark.timeout(600)
def test_world_size_and_interruption_change_nothing(digits: Corpus, tmp_path: Path) -> None:
    spec = spec_for(digits)
    launches = [Launch(tmp_path / name, checkpoint_every=15) for name in ("one", "two", "again")]
    one = on_ranks(1, tmp_path / "r1", run, spec, launches[0])[0]
    two = on_ranks(2, tmp_path / "r2", run, spec, launches[1])
    again = on_ranks(1, tmp_path / "r3", run_twice, spec, launches[2])[0]

    assert [step.step for step in one] == list(range(1, STEPS + 1))
    assert two[0][-1].loss < one[0].loss  # it learns at all
    for alone, rank0, rank1 in zip(one, *two, strict=True):
        assert rank0.loss == rank1.loss
        assert rank0.loss == pytest.approx(alone.loss, abs=1e-4)
        assert rank0.grad_norm == pytest.approx(alone.grad_norm, rel=1e-3)

    # What was read is the same for any number of workers and interruptions, and it is what the plan says.
    assert [step.read for step in two[0]] == [step.read for step in two[1]] == [step.read for step in one]
    assert [step.read for step in again] == [step.read for step in one[30:]]
    rows = digits.select("train")
    uids = np.frombuffer(b"".join(digits.uid(int(row)) for row in rows), np.uint8).reshape(len(rows), 16)
    assert list(replay(Samples(np.arange(len(uids))), uids, spec.order_key, spec.global_batch, STEPS)) == [
        step.read for step in one
    ]

    # The resumed run starts after the checkpoint, repeats its losses and ends in the same bits.
    assert [step.step for step in again] == list(range(31, STEPS + 1))
    assert [step.loss for step in again] == [step.loss for step in one[30:]]
    for name, tensor in weights(launches[0]).items():
        assert torch.equal(tensor, weights(launches[2])[name]), name

    described = json.loads((launches[0].run_dir / "artifact" / "artifact.json").read_text())
    assert described["provenance"]["corpus_root"] == digits.root
    assert described["provenance"]["run_id"] == spec.run_id
    assert load_model(str(launches[0].run_dir)).classes == digits.classes


def stopped(spec: RunSpec, launch: Launch) -> str:
    try:
        run(spec, launch)
    except FloatingPointError as error:
        return str(error)
    return ""


def test_a_loss_that_is_no_number_stops_before_the_update_and_names_the_rows(digits: Corpus, tmp_path: Path) -> None:
    """A learning rate that blows the weights up on the second step; the first one is in a checkpoint."""
    spec = spec_for(digits)
    spec = replace(spec, optim=replace(spec.optim, lr=1e30, warmup_steps=1), steps=9)
    launch = Launch(tmp_path / "run", checkpoint_every=1)
    (message, other) = on_ranks(2, tmp_path / "r", stopped, spec, launch)
    assert message == other and message.startswith("step 2 has loss nan")
    facts = json.loads((launch.run_dir / "stopped-at-step-2.json").read_text())
    index, _ = rows_at(24, 24, len(digits.select("train")), spec.order_key)
    assert facts["uids"] == [digits.uid(int(digits.select("train")[i])).hex() for i in index]
    newest = checkpoints.newest(launch.run_dir / "checkpoints", spec.run_id)
    assert newest is not None and newest.step == 1 and not (launch.run_dir / "artifact").exists()


def refused(spec: RunSpec, launch: Launch) -> str:
    try:
        run(spec, launch)
    except ValueError as error:
        return str(error)
    return ""


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_made(digits: Corpus, tmp_path: Path) -> None:
    spec = spec_for(digits)
    vast = replace(spec, model=replace(spec.model, text={**spec.model.text, "width": 2**24}))
    (message,) = on_ranks(1, tmp_path / "r", refused, vast, Launch(tmp_path / "run"))
    assert "do not fit 1 worker of" in message and "or a smaller model" in message


def test_a_worker_without_a_row_is_refused(digits: Corpus, tmp_path: Path) -> None:
    spec = replace(spec_for(digits), global_batch=1)
    messages = on_ranks(2, tmp_path / "r", refused, spec, Launch(tmp_path / "run"))
    assert all("gives 2 workers nothing to do; give at most 1" in message for message in messages)
