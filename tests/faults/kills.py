"""Killing real processes of a real `sightline ingest` at a chosen moment, and finishing it by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

DEADLINE_S = 120
ORPHANS_S = 3
VICTIMS = ("driver", "worker", "raylet")
TITLES = {"worker": "ray::Map", "trainer": "ray::RayTrainWorker"}  # of Ray's processes, which show what they run


@dataclass(frozen=True)
class Killed:
    """What a kill left behind, and what the same command made of it.

    Attributes:
        done: shards that were done when the victim died.
        kept: of these, how many were not written again.
        survived: the run went on by itself (Ray replaces a worker).
        root: of the finished corpus.
    """

    done: int
    kept: int
    survived: bool
    root: str


def command(source: Path, corpus: Path, options: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "sightline", "ingest", str(source), str(corpus), "--json", *options]


def done_shards(corpus: Path) -> list[Path]:
    return sorted((corpus / "_staging").rglob("shard-*.json"))


def victims_of(driver: int, victim: str) -> list[psutil.Process]:
    """The processes that a kill may hit."""
    if victim == "driver":
        return [psutil.Process(driver)]
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        try:
            name = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if ("/raylet" in name.split(" ")[0]) if victim == "raylet" else name.startswith(TITLES[victim]):
            found.append(process)
    return found


def kill_and_finish(
    source: Path, corpus: Path, victim: str, after: int, environment: Mapping[str, str], options: Sequence[str] = ()
) -> Killed:
    """Begin an ingest, kill `victim` (of `VICTIMS`) once `after` shards are done, and run the command again if need be."""
    environment, verb = dict(environment), command(source, corpus, options)
    run = subprocess.Popen(verb, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    wait_for(lambda: len(done_shards(corpus)) >= after, run)
    done = done_shards(corpus)
    data = {path: path.stat().st_mtime_ns for path in (corpus / "data").rglob("*.arrow")}
    finished = {json.loads(path.read_text())["file"] for path in done}
    wait_for(lambda: bool(victims_of(run.pid, victim)), run)
    targets = victims_of(run.pid, victim)
    children = psutil.Process(run.pid).children(recursive=True)
    for process in targets[:1] if victim == "worker" else targets:
        process.send_signal(signal.SIGKILL)
    output, _ = run.communicate(timeout=DEADLINE_S)
    for process in psutil.wait_procs(children, timeout=ORPHANS_S)[1]:
        process.kill()  # Ray's own processes take up to a minute to see that their driver is gone
    survived = run.returncode == 0
    if not survived:
        again = subprocess.run(verb, env=environment, capture_output=True, timeout=DEADLINE_S)
        assert again.returncode == 0, again.stderr.decode()
        output = again.stdout
    kept = sum(data.get(corpus / name) == (corpus / name).stat().st_mtime_ns for name in finished)
    return Killed(len(finished), kept, survived, json.loads(output.splitlines()[-1])["root"])


def kill(driver: int, victim: str) -> None:
    """Kill the first process of that kind below the driver."""
    victims_of(driver, victim)[0].send_signal(signal.SIGKILL)


def end_all(process: subprocess.Popen[str]) -> None:
    """Kill a command and everything that it started: Ray's own processes take up to a minute to see that their driver is gone."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[Any], *, may_end: bool = False) -> None:
    """Until the condition holds; the process may not take longer than the deadline, nor end before unless it may."""
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert may_end or process.poll() is None, f"the process ended too early: {process.stderr.read() if process.stderr else ''}"
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.01)
