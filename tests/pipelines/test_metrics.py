"""The record of a run survives kills; TensorBoard, W&B and MLflow show what it says, read back by their own readers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.clock import PARTS
from sightline.pipelines.train.metrics import read_metrics, record
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import Launch, RunSpec
from tests.pipelines.test_loop import spec_for


def a_step(number: int) -> Step:
    return Step(number, 3.0 / number, 1.0, 1e-3, 10.0, 100.0, None, dict.fromkeys(PARTS, 0.01), f"{number:016x}", 1)


@pytest.fixture
def spec(digits: Corpus) -> RunSpec:
    return replace(spec_for(digits), steps=3)


def write(spec: RunSpec, launch: Launch, steps: range) -> None:
    launch.run_dir.mkdir(exist_ok=True)
    with record(spec, launch) as add:
        for number in steps:
            add(a_step(number))


def test_a_line_that_a_kill_cut_off_costs_no_other_line(spec: RunSpec, tmp_path: Path) -> None:
    launch = Launch(tmp_path / "run")
    write(spec, launch, range(1, 4))
    path = launch.run_dir / "metrics.jsonl"
    path.write_text(path.read_text()[:-20])
    write(spec, launch, range(3, 5))
    assert [line["step"] for line in read_metrics(launch.run_dir)] == [1, 2, 3, 4]
    assert len({line["began"] for line in read_metrics(launch.run_dir)}) == 2


def test_tensorboard_reads_every_figure(spec: RunSpec, tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event  # its file: length, checksum, event, checksum

    launch = Launch(tmp_path / "run", track=("tensorboard",))
    write(spec, launch, range(1, 4))
    (path,) = (launch.run_dir / "tensorboard").iterdir()
    data, found = path.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value if value.HasField("simple_value")}
        data = data[16 + length :]
    assert {step: found["loss", step] for step in (1, 2, 3)} == pytest.approx({1: 3.0, 2: 1.5, 3: 1.0})
    assert found["seconds/data", 2] == pytest.approx(0.01)


def test_wandb_keeps_one_run_over_two_attempts(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is absent")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    launch = Launch(tmp_path / "run", track=("wandb",))
    write(spec, launch, range(1, 3))
    write(spec, launch, range(3, 4))
    runs = sorted((launch.run_dir / "wandb").glob(f"offline-run-*-{spec.run_id}"))
    assert len(runs) == 2 and all(list(run.glob("*.wandb")) for run in runs)


def test_mlflow_keeps_one_run_over_two_attempts(spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is absent")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/store")
    launch = Launch(tmp_path / "run", track=("mlflow",))
    write(spec, launch, range(1, 3))
    write(spec, launch, range(3, 4))
    (found,) = mlflow.search_runs(experiment_names=["sightline"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert {metric.step: metric.value for metric in history} == pytest.approx({1: 3.0, 2: 1.5, 3: 1.0})
    assert json.loads(mlflow.artifacts.load_text(f"{found.info.artifact_uri}/run.json"))["steps"] == 3
