"""The memory of an ingest of 24-megapixel photographs, against what its tasks declare to Ray.

    python -m benchmarks.ingest_memory

A sampler adds up the unique memory (USS) of every process of the run: the driver, Ray's own, the workers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import simplejpeg

from benchmarks.report import section
from sightline.pipelines.ingest.job import WORKER_BYTES

IMAGES, WIDTH, HEIGHT, WORKERS = 64, 6000, 4000, 2
LIMIT = 4 * 2**30
PERIOD_S = 0.1


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        nbytes = write_source(folder / "source")
        idle = peak(["-c", EMPTY], folder)
        workers, everything, spilled = peak([*INGEST, str(folder / "source"), str(folder / "corpus")], folder)
    accounted = WORKERS * WORKER_BYTES
    assert spilled == 0, f"{spilled} bytes were spilled"
    rows = [
        ["accounted for the workers", gib(accounted)],
        ["peak of the workers", f"{gib(workers)} ({workers / accounted:.2f} of it)"],
        ["peak of all processes, Ray's own among them", gib(everything)],
        ["the same before any work", gib(idle[1])],
        ["limit", gib(LIMIT)],
        ["spilled", "nothing"],
    ]
    size = f"{WIDTH} x {HEIGHT} pixels, {nbytes / IMAGES / 1e6:.1f} MB each"
    what = f"{IMAGES} JPEGs of {size}, --resize shortest=256, {WORKERS} workers"
    section("Memory of an ingest", "python -m benchmarks.ingest_memory", what, ("ray", "pyarrow"), ["what", "size"], rows)


EMPTY = """
import time, ray
ray.init(num_cpus=2, include_dashboard=False)
time.sleep(5)
"""
INGEST = ("-m", "sightline", "ingest", "--resize", "shortest=256", "--shard-rows", "16", "--cpus", str(WORKERS))


def peak(arguments: list[str], folder: Path) -> tuple[int, int, int]:
    """Run Python; peak USS of Ray's workers and of all its processes in bytes, and the bytes that Ray spilled."""
    run = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, env={**os.environ, "RAY_TMPDIR": str(folder)})
    workers = everything = 0
    while run.poll() is None:
        uses = list(uses_of(run.pid))
        workers = max(workers, sum(uss for name, uss in uses if name.startswith("ray::") and "IDLE" not in name))
        everything = max(everything, sum(uss for _, uss in uses))
        time.sleep(PERIOD_S)
    assert run.returncode == 0
    spilled = sum(path.stat().st_size for path in folder.rglob("ray_spilled_objects*/*"))
    return workers, everything, spilled


def uses_of(pid: int) -> Iterator[tuple[str, int]]:
    """The title and the USS of a process and of all below it."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return
    for process in family:
        with suppress(psutil.Error):  # it may end at any moment
            yield " ".join(process.cmdline()[:1]), process.memory_full_info().uss


def write_source(folder: Path) -> int:
    """Photographs of smooth noise, as large as a camera's."""
    (folder / "photo").mkdir(parents=True)
    noise = np.random.default_rng(0)
    coarse = noise.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    fine = noise.integers(0, 40, (HEIGHT, WIDTH, 3), np.uint8)
    total = 0
    for i in range(IMAGES):
        pixels = np.ascontiguousarray(np.roll(coarse // 2 + fine, i * 8, axis=0))
        data = simplejpeg.encode_jpeg(pixels, quality=85)
        (folder / "photo" / f"{i:03d}.jpg").write_bytes(data)
        total += len(data)
    return total


def gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"


if __name__ == "__main__":
    main()
