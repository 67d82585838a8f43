"""Training on Ray Train, with every checkpoint evaluated beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sightline.models.load import load_model
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import evaluate
from sightline.pipelines.train import checkpoints, job
from sightline.pipelines.train.loop import train
from sightline.pipelines.train.spec import Launch, RunSpec
from sightline.pipelines.train.validate import validate, waiting
from tests.pipelines.test_loop import spec_for
from tests.processes import on_ranks

METRIC = "image_to_text_recall@10"


def test_checkpoints_are_evaluated_beside_the_training_and_the_best_one_stays(
    ray_local: None, digits: Corpus, tmp_path: Path
) -> None:
    spec = replace(spec_for(digits), steps=12, optim=replace(spec_for(digits).optim, ema=0.5))
    launch = Launch(tmp_path / "run", workers=1, checkpoint_every=4, keep=1, evaluate="val", keep_best=METRIC)
    said: list[str] = []
    steps: list[int] = []
    report = job.run(spec, launch, lambda step: steps.append(step.step), said.append)
    assert steps == list(range(1, 13)) and report.steps == 12
    scores = [json.loads(line) for line in (launch.run_dir / "validation.jsonl").read_text().splitlines()]
    assert sorted(line["step"] for line in scores) == [4, 8, 12]
    assert sum("on val:" in line for line in said) == 3
    best = max(scores, key=lambda line: (line[METRIC], line["step"]))
    kept = {one.step for one in checkpoints.complete(launch.saved_at, spec.run_id)}
    assert kept == {12, best["step"]}
    # The last checkpoint is the artifact: its scores beside the training are those of the plain evaluation.
    last = next(line for line in scores if line["step"] == 12)
    plain = evaluate(load_model(str(report.artifact)), digits, "val").metrics
    assert {name: last[name] for name in plain} == pytest.approx(plain)
    # All of it is there: nothing is done again.
    again = job.run(spec, launch)
    assert again.resumed_from == 12 and again.final_loss == report.final_loss and again.samples_per_s is None


def test_an_unknown_metric_names_the_choices(digits: Corpus, tmp_path: Path) -> None:
    spec, launch = replace(spec_for(digits), steps=2), Launch(tmp_path / "run", evaluate="val")
    on_ranks(1, tmp_path / "ranks", trained, spec, launch)
    (checkpoint,) = waiting(spec, launch)
    with pytest.raises(ValueError, match=r"there is no metric 'beauty'; --keep-best may be .*image_to_text_recall@10"):
        validate(spec, replace(launch, keep_best="beauty"), checkpoint)


def trained(spec: RunSpec, launch: Launch) -> None:
    train(spec, launch, Corpus.open(spec.data.corpus, spec.data.root))
