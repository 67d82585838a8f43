"""Feeding training with 224 x 224 uint8 batches of 64: the inline and the Ray Data feed against a bare loop and against peers.

    python -m benchmarks.feeding PHOTOS [--files 8000] [--batches 100] [--runs 3] [--workers 2] [--only WAY ...]

PHOTOS is a folder of JPEGs; they are repeated (as links) up to the number of files, and written once in each way's own format.
Every measurement is a process of its own (`feeding_ways.py`), and the ways take turns; tables have medians. All decode by the same
function but Ray's `read_images`. Peers live in an environment of their own, made from feeding_peers.txt on the first run, which
takes all else (torch, simplejpeg) from ours. The result goes into BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path
from statistics import median

from benchmarks.feeding_ways import WARM, WHERE
from benchmarks.ingest_vs_img2dataset import captions, repeat
from benchmarks.report import environment, table, write_section

PEERS = Path(sys.prefix) / "peers" / "feeding"
REQUIREMENTS = Path(__file__).resolve().with_name("feeding_peers.txt")
CHECKOUT = Path(__file__).resolve().parent.parent
TITLE = "Feeding, against peers"
OURS = ("bare", "inline", "ray-data")
NAMES = {
    "bare": "bare loop, threads",
    "inline": "Sightline, inline",
    "ray-data": "Sightline, Ray Data",
    "datasets": "Hugging Face datasets, DataLoader",
    "litdata": "litdata",
    "webdataset": "webdataset, WebLoader",
    "streaming": "mosaicml-streaming, DataLoader",
    "read-images": "Ray `read_images(size=)`, its own decode",
}
PAUSES_MS = (100, 200)
COUNTED = ("bare", "inline", "ray-data", "read-images")  # whose CPU time is shown
Measured = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--files", type=int, default=8_000)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", nargs="+", choices=list(NAMES), help="these ways alone; BENCHMARKS.md stays as it is")
    given = parser.parse_args()
    ways = [way for way in NAMES if not given.only or way in given.only]
    peer_environment()
    with tempfile.TemporaryDirectory(prefix="sl-", dir="/tmp") as name:  # Ray's sockets lie below it: their paths must be short
        work = Path(name)
        (work / "photos").mkdir()
        files = repeat(given.photos, work / "photos", given.files)
        captions(work / "photos" / "captions.csv", "image", [file.name for file in files])
        ingest(work)
        for way in ways:
            child(way, "write", work, given.workers)
        fast: dict[str, list[Measured]] = {way: [] for way in ways}
        for run in range(given.runs):
            for way in ways:
                fast[way].append(read(way, work, given.workers, given.batches, 0))
                print(f"run {run}: {way}: {fast[way][-1]}", file=sys.stderr, flush=True)
        slow: dict[tuple[str, int], list[float]] = {}
        for pause in PAUSES_MS:
            for way in [way for way in ("inline", "ray-data") if way in ways]:
                slow[way, pause] = [read(way, work, given.workers, given.batches // 2, pause)["waited"] for _ in range(given.runs)]
                print(f"pause {pause} ms: {way}: {slow[way, pause]}", file=sys.stderr, flush=True)
    report(fast, slow, given)


def ingest(work: Path) -> None:
    command = [sys.executable, "-m", "sightline", "ingest", str(work / "photos" / "captions.csv"), str(work / "corpus")]
    subprocess.run(command, check=True, stdout=sys.stderr)


def read(way: str, work: Path, workers: int, batches: int, pause_ms: float) -> Measured:
    said = child(way, "read", work, workers, "--batches", str(batches), "--pause-ms", str(pause_ms))
    measured: Measured = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return measured


def child(way: str, verb: str, work: Path, workers: int, *options: str) -> str:
    python = sys.executable if way in OURS or way == "read-images" else str(PEERS / "bin" / "python")
    command = [python, "-m", "benchmarks.feeding_ways", verb, way, str(work), "--workers", str(workers), *options]
    quiet = {"TOKENIZERS_PARALLELISM": "false", "RAY_DATA_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, cwd=CHECKOUT, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def peer_environment() -> None:
    """An environment beside ours that has the peers, and by a path file all that ours has; made if it is not there."""
    made = PEERS / "made-from.txt"
    if made.exists() and made.read_text() == REQUIREMENTS.read_text():
        return
    venv.create(PEERS, with_pip=True, clear=True)
    python = str(PEERS / "bin" / "python")
    ask = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip())
    (packages / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", str(REQUIREMENTS)]
    subprocess.run(pip, check=True, stdout=sys.stderr)
    made.write_text(REQUIREMENTS.read_text())


def report(fast: dict[str, list[Measured]], slow: dict[tuple[str, int], list[float]], given: argparse.Namespace) -> None:
    rate = {way: median(run["samples_per_s"] for run in runs) for way, runs in fast.items()}
    first = {way: median(run["first_s"] for run in runs) for way, runs in fast.items()}
    peers = {way: rate[way] for way in rate if way not in OURS}
    best = max(peers.values(), default=float("nan"))
    bare = rate.get("bare", float("nan"))
    lines = [
        (NAMES[way], f"{rate[way]:,.0f}", f"{rate[way] / bare:.2f}", f"{rate[way] / best:.2f}", f"{first[way]:.2f}") for way in rate
    ]
    waits = [(NAMES[way], f"{pause} ms", f"{100 * median(shares):.2f} %") for (way, pause), shares in slow.items()]
    cost = [(NAMES[way], *(f"{median(run[where] for run in fast[way]):.2f}" for where in WHERE)) for way in fast if way in COUNTED]
    pins = ", ".join(line for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    body = f"""`python -m benchmarks.feeding PHOTOS`: {given.files:,} JPEG files, warm, batches of 64 uint8 images of 224 x 224,
{given.workers} threads, worker processes or actors, {given.batches} batches after {WARM} that do not count, medians of
{given.runs} runs that took turns; {environment("ray", "torch", "simplejpeg", "pyarrow")}; {pins}.
The decoder is the same function for all (simplejpeg, torch's antialiased bicubic kernel, centre crop) but for `read_images`, which
decodes by Pillow and squashes. The first batch is counted from the making of the loader, after imports; for Ray it has the start of
Ray in it.

"""
    header = ("", "samples/s", "of the bare loop", "of the best peer", "first batch, s")
    text = body + table(header, lines)
    text += "\n\nWaiting, as a share of a step in which the consumer pauses (it sleeps, and so leaves the cores to the feed):\n\n"
    text += table(("", "pause a batch", "waits"), waits)
    text += (
        "\n\nWhere the time goes without a pause, in CPU milliseconds a sample. All share the cores here, so that what Ray spends\n"
    )
    text += "on moving batches binds its feed; it is meant for decoding on other machines than those that train.\n\n"
    text += table(("", "the consumer", "actors and tasks that decode", "Ray's own processes"), cost)
    print(text)
    if not given.only:
        write_section(TITLE, text)


if __name__ == "__main__":
    main()
