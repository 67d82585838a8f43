"""A training command killed at any moment goes on from its last complete checkpoint, and ends in the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CommandLine
from tests.corpora import digits_source, ingest_alone

STEPS = 24
DEADLINE_S = 180


def steps_done(run_dir: Path) -> int:
    metrics = list(run_dir.glob("*/metrics.jsonl"))
    return len(metrics[0].read_text().splitlines()) if metrics else 0


@pytest.mark.timeout(600)
def test_a_killed_run_ends_in_the_same_weights(cli: CommandLine, cli_environment: dict[str, str], tmp_path: Path) -> None:
    corpus = ingest_alone(digits_source(tmp_path / "source", train=60, val=2, test=12), tmp_path / "corpus")
    command = ["train", "clip_demo", f"corpus={corpus}", f"steps={STEPS}", "global_batch=16", "--checkpoint-every", "4", "--json"]

    whole = cli(*command, "--runs", "whole", timeout_s=200)
    assert whole.returncode == 0, whole.stderr

    # In a session of its own, so that the driver, its Ray and its workers all die at once.
    process = subprocess.Popen(
        [sys.executable, "-m", "sightline", *command, "--runs", "killed"],
        cwd=tmp_path,
        env=cli_environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    while steps_done(tmp_path / "killed") < 7:
        assert time.monotonic() < deadline and process.poll() is None, "it did not get to step 7"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").glob("*/artifact"))

    resumed = cli(*command, "--runs", "killed", timeout_s=200)
    assert resumed.returncode == 0, resumed.stderr
    first, second = (json.loads(done.stdout.splitlines()[-1]) for done in (whole, resumed))
    assert second["resumed_from"] >= 4
    assert second["final_loss"] == first["final_loss"]
    assert (Path(first["artifact"]) / "weights.safetensors").read_bytes() == (
        Path(second["artifact"]) / "weights.safetensors"
    ).read_bytes()
    verified = cli("verify", Path(second["artifact"]).parent, "--json")
    assert verified.returncode == 0, verified.stderr
    assert json.loads(verified.stdout)["verdict"].startswith("each of 60 rows was read exactly 6 times, and 24 of them once more")
