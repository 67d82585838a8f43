"""Training without Ray: the same losses, under torchrun too; told to end, it saves first and loses no step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sightline.pipelines.corpus.reader import Corpus
from tests.conftest import CommandLine, InlineCommandLine
from tests.faults.kills import wait_for
from tests.processes import free_port

# A machine on which Ray is not installed, as far as Python can tell.
NO_RAY = """
import sys
sys.modules["ray"] = None
from sightline.__main__ import main
main()
"""


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def command(corpus: Corpus, *more: str) -> list[str]:
    return ["train", "clip_demo", f"corpus={corpus.location}", "global_batch=20", "model.embed_dim=16", *more]


def test_torchrun_without_ray_gives_the_losses_of_one_process(
    digits: Corpus, tmp_path: Path, cli_environment: dict[str, str]
) -> None:
    script = tmp_path / "no_ray.py"
    script.write_text(NO_RAY)
    options = command(digits, "steps=8", "--json", "--checkpoint-every", "4", "--track", "none")
    starts = {
        "one": [sys.executable, str(script), *options, "--without-ray", "--runs", "one"],
        "two": [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())),
            *(str(script), *options, "--runs", "two", "--profile", "5:6"),
        ],
    }
    reports = {}
    for name, start in starts.items():
        done = subprocess.run(start, cwd=tmp_path, env=cli_environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        (last,) = done.stdout.splitlines()  # rank 0 alone speaks
        reports[name] = json.loads(last)
    assert reports["one"]["run_id"] == reports["two"]["run_id"]
    one, two = (lines(Path(report["artifact"]).parent) for report in reports.values())
    assert [step["read"] for step in one] == [step["read"] for step in two]
    assert [step["loss"] for step in one] == pytest.approx([step["loss"] for step in two], abs=1e-4)
    (trace,) = (Path(reports["two"]["artifact"]).parent / "profile").iterdir()
    steps = {event["name"] for event in json.loads(trace.read_text())["traceEvents"] if "ProfilerStep" in event.get("name", "")}
    assert len(steps) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.campaign)])
def test_told_to_end_it_saves_and_the_same_command_loses_no_step(
    digits: Corpus, tmp_path: Path, cli: CommandLine, cli_environment: dict[str, str], number: signal.Signals
) -> None:
    options = [*command(digits, "steps=40"), "--without-ray", "--runs", "runs", "--checkpoint-every", "1000", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sightline", *options],
        cwd=tmp_path,
        env=cli_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def record() -> list[Path]:
        return list((tmp_path / "runs").glob("*/metrics.jsonl"))

    wait_for(lambda: bool(record()) and record()[0].read_text().count("\n") >= 5, process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command again goes on" in errors, errors
    stopped_at = len(record()[0].read_text().splitlines())
    done = cli(*options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["resumed_from"] == stopped_at < 40
    assert [line["step"] for line in lines(Path(report["artifact"]).parent)] == list(range(1, 41))
    record_of_all = lines(Path(report["artifact"]).parent)
    wall_s = record_of_all[-1]["at"] - record_of_all[0]["began"]
    assert sum(report["seconds"].values()) == pytest.approx(wall_s, rel=0.02)
    assert report["seconds"]["redone"] == 0 and report["seconds"]["restart"] > 0


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        (["--workers", "2", "--without-ray"], "start the processes by torchrun"),
        (["--evaluate", "val", "--without-ray"], "need Ray"),
        (["--keep-best", "top1"], "--keep-best needs --evaluate SPLIT"),
        (["--workers", "4:2"], "is no range"),
        (["--workers", "many"], "is no range"),
        (["--profile", "0:2"], "is no range"),
        (["--track", "paper"], "give tensorboard, wandb, mlflow or none"),
        (["optim.schedule=linear"], "optim.schedule"),
        (["optim.layer_decay=1.5"], "give a number from 0 to 1"),
        (["optim.ema=1"], "give a number from 0 to 0.999999"),
    ],
)
def test_a_mistake_is_one_line_before_anything_begins(
    digits: Corpus, cli_inline: InlineCommandLine, options: list[str], remedy: str
) -> None:
    done = cli_inline(*command(digits, "steps=2"), *options)
    assert done.exit_code == 2 and remedy in done.stderr and len(done.stderr.splitlines()) == 1
