"""A training command whose worker, driver or raylet is killed in the middle of an epoch ends in the weights of a run that nobody
disturbed, and that ran without Ray at all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CommandLine
from tests.corpora import digits_source, ingest_alone
from tests.faults.kills import end_all, kill, wait_for

STEPS = 60


def steps_done(runs: Path) -> int:
    """The last step in the record."""
    metrics = list(runs.glob("*/metrics.jsonl"))
    lines = [line for line in metrics[0].read_text().splitlines() if line.endswith("}")] if metrics else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def lines_of(runs: Path) -> int:
    metrics = list(runs.glob("*/metrics.jsonl"))
    return len(metrics[0].read_text().splitlines()) if metrics else 0


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def weights(report: dict[str, Any]) -> bytes:
    return (Path(report["artifact"]) / "weights.safetensors").read_bytes()


@pytest.mark.timeout(600)
def test_a_killed_run_ends_in_the_same_weights(cli: CommandLine, cli_environment: dict[str, str], tmp_path: Path) -> None:
    corpus = ingest_alone(digits_source(tmp_path / "source", train=60, val=2, test=12), tmp_path / "corpus")
    command = ["train", "clip_demo", f"corpus={corpus}", f"steps={STEPS}", "global_batch=16", "--checkpoint-every", "4", "--json"]
    runs = tmp_path / "killed"

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sightline", *command, "--runs", str(runs)],
            cwd=tmp_path,
            env=cli_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    whole = result(cli(*command, "--runs", "whole", "--without-ray", timeout_s=200))

    # A worker: Ray starts another, which goes on from the last checkpoint. Then the driver, with all that it started.
    process = begin()
    wait_for(lambda: steps_done(runs) >= 7, process)
    kill(process.pid, "trainer")
    before = lines_of(runs)
    wait_for(lambda: lines_of(runs) > before + 2 and steps_done(runs) >= 14, process)
    end_all(process)

    # The raylet: Ray may end the command without a word, and workers may be done before they notice.
    process = begin()
    before = lines_of(runs)
    wait_for(lambda: lines_of(runs) > before + 2, process)
    kill(process.pid, "raylet")
    _, errors = process.communicate(timeout=120)
    assert "Traceback" not in errors, errors
    end_all(process)

    # The rest needs no Ray.
    resumed = result(cli(*command, "--runs", runs, "--without-ray", timeout_s=200))
    assert resumed["resumed_from"] >= 12
    assert resumed["final_loss"] == whole["final_loss"]
    assert weights(resumed) == weights(whole)
    assert sum(resumed["seconds"].values()) > 0 and resumed["seconds"]["restart"] > 0
    verified = cli("verify", Path(resumed["artifact"]).parent, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["verdict"] == "each of 60 rows was read exactly 16 times"
