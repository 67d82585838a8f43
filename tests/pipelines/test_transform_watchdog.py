"""A process whose item hangs ends; one that goes on with its items lives, and so does whoever is done."""

from __future__ import annotations

import subprocess
import sys

HANGS = """
import time
from sightline.pipelines.ingest.watchdog import watchdog
with watchdog(0.5) as beat:
    beat()
    time.sleep(100)
"""
GOES_ON = """
import time
from sightline.pipelines.ingest.watchdog import watchdog
begun = time.monotonic()
with watchdog(1.0) as beat:
    while time.monotonic() - begun < 2.5:
        beat()
        time.sleep(0.01)
time.sleep(1.5)
print("alive")
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)


def test_a_hang_ends_the_process_with_a_traceback() -> None:
    done = run(HANGS)
    assert done.returncode == 1
    assert "Timeout" in done.stderr and "<string>" in done.stderr


def test_a_process_that_goes_on_is_left_alone_and_so_is_one_that_is_done() -> None:
    assert run(GOES_ON).stdout == "alive\n"
