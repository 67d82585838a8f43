"""Training under fire: kills in the middle of steps and of saves, machines that come and go, preemptions with and without notice.

    python -m benchmarks.campaign_train [KILLS] [SAVES]

All runs are of the demo's recipe, narrowed, on scenes of digits. Kills hit a real `sightline train` on a local Ray: its driver, a
worker or its raylet; the same command then goes on, and the weights must be those of a run that nobody disturbed, bit by bit.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import section
from tests.corpora import digits_source, ingest_alone
from tests.faults.kills import end_all, kill, wait_for
from tests.kills_while_saving import killed_saves

VICTIMS = ("trainer", "driver", "raylet")
STEPS, EVERY = 300, 20
PREEMPTIONS, PREEMPTED_STEPS, PERIOD = 4, 400, 100


def main(kills: int = 20, saves: int = 200) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = ingest_alone(digits_source(folder / "source", train=240, val=2, test=12), folder / "corpus")
        rows = [killed_steps(corpus, folder, kills), saving(folder / "saves", saves), preempted(corpus, folder)]
        rows.append(elastic(corpus, folder))
    what = "SIGKILL to real processes, then the same command again"
    section(
        "Training under fire", "python -m benchmarks.campaign_train", what, ("ray", "torch"), ("what", "how often", "found"), rows
    )


def command(corpus: Path, runs: Path, steps: int, every: int, *more: str) -> list[str]:
    verb = [sys.executable, "-m", "sightline", "train", "clip_demo", f"corpus={corpus}", f"steps={steps}", "global_batch=24"]
    return [*verb, "model.embed_dim=16", "--runs", str(runs), "--checkpoint-every", str(every), "--track", "none", "--json", *more]


def finished(verb: Sequence[str]) -> dict[str, Any]:
    done = subprocess.run(verb, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def begun(verb: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def lines(runs: Path) -> list[dict[str, Any]]:
    found = list(runs.glob("*/metrics.jsonl"))
    return [json.loads(line) for line in found[0].read_text().splitlines() if line.endswith("}")] if found else []


def weights(report: dict[str, Any]) -> bytes:
    return (Path(report["artifact"]) / "weights.safetensors").read_bytes()


def killed_steps(corpus: Path, folder: Path, kills: int) -> tuple[str, str, str]:
    """One run after another is killed at steps that nobody chose, until so many kills are done."""
    chance = random.Random(0)
    whole = weights(finished(command(corpus, folder / "whole", STEPS, EVERY, "--without-ray")))
    done = same = runs = 0
    while done < kills:
        runs += 1
        at = folder / f"killed-{runs}"
        verb = command(corpus, at, STEPS, EVERY)
        process = begun(verb)
        while done < kills and reached(at, len(lines(at)) + chance.randrange(2, 120), process):
            victim = VICTIMS[done % len(VICTIMS)]
            print(f"kill {done + 1} of {kills}: {victim} at step {lines(at)[-1]['step']}", file=sys.stderr, flush=True)
            kill(process.pid, victim)
            done += 1
            if victim != "trainer":  # for that one Ray starts another
                end_all(process)
                process = begun(verb)
        process.communicate()
        same += weights(finished(verb)) == whole
    found = f"{same} of {runs} runs end in the same bits as one that nobody disturbed, without Ray"
    return f"worker, driver, raylet killed in turn at random steps, a checkpoint every {EVERY} of {STEPS}", f"{kills} kills", found


def reached(runs: Path, count: int, process: subprocess.Popen[str]) -> bool:
    """Wait until the record has so many lines; False if the command ends before."""
    wait_for(lambda: len(lines(runs)) >= count or process.poll() is not None, process, may_end=True)
    return process.poll() is None


def saving(folder: Path, saves: int) -> tuple[str, str, str]:
    result = killed_saves(folder, saves, seed=0)
    found = f"{result.unloadable} after which the newest checkpoint did not load, or was not that of its step"
    return "killed while saving, again and again", f"{saves} kills", found


def preempted(corpus: Path, folder: Path) -> tuple[str, str, str]:
    """The same four moments, once with a notice (SIGTERM) and once without (SIGKILL): how many steps were done twice."""
    chance = random.Random(1)
    moments = sorted(chance.sample(range(20, PREEMPTED_STEPS - 20), PREEMPTIONS))
    redone = {}
    for number in (signal.SIGTERM, signal.SIGKILL):
        at = folder / f"preempted-{number}"
        verb = command(corpus, at, PREEMPTED_STEPS, PERIOD, "--without-ray")
        for moment in moments:
            process = begun(verb)
            reached(at, moment + redone_so_far(at), process)
            os.kill(process.pid, number)
            process.communicate()
        finished(verb)
        redone[number] = len(lines(at)) - PREEMPTED_STEPS
    found = f"{redone[signal.SIGTERM]} steps done twice with notice, {redone[signal.SIGKILL]} without"
    return f"preempted, a checkpoint every {PERIOD} of {PREEMPTED_STEPS} steps", f"{PREEMPTIONS} times each", found


def redone_so_far(runs: Path) -> int:
    """How many lines of the record are of steps that another line has too."""
    return len(lines(runs)) - len({line["step"] for line in lines(runs)})


def elastic(corpus: Path, folder: Path) -> tuple[str, str, str]:
    """Four workers, two of them preempted, one more machine: against one process that nobody disturbed."""
    steps = 1000
    verb = [sys.executable, "-m", "tests.faults.elastic", str(corpus), str(folder / "elastic"), str(steps)]
    done = subprocess.run(verb, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    last = {line["step"]: line for line in lines(folder / "elastic")}
    worlds = [last[step]["workers"] for step in sorted(last)]
    changes = [world for i, world in enumerate(worlds) if i == 0 or world != worlds[i - 1]]
    verified = subprocess.run(
        [sys.executable, "-m", "sightline", "verify", str(Path(found["report"]["artifact"]).parent), "--json"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    verdict = json.loads(verified.stdout)["verdict"]
    return "machines preempted and added, on a cluster of raylets", " → ".join(map(str, changes)) + " workers", verdict


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
