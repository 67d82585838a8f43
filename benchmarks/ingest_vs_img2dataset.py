"""`sightline ingest` against img2dataset and against the machine: photos to a shorter side of 256 pixels, as JPEG.

    python -m benchmarks.ingest_vs_img2dataset PHOTOS [--files 40000] [--runs 2] [--workers 2]

PHOTOS is a folder of JPEGs; they are repeated (as links) up to the number of files. The ceiling is a bare loop on as many
processes, reading, decoding, resizing and encoding, and writing nothing. Sightline reads the files, img2dataset `file://`
addresses; then both read from an HTTP server on this machine, which shares its cores. Runs take turns; the table has medians.
img2dataset lives in an environment of its own, made from peers.txt on the first run. The result goes into BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from benchmarks.report import environment, table, write_section

SIDE, QUALITY = 256, 90
CONNECTIONS = 32  # at a time, of all processes together
CEILING = "ceiling: bare loop"
AGAINST = {"img2dataset, file://": "sightline ingest, files", "img2dataset, HTTP on loopback": "sightline ingest, HTTP on loopback"}
PEERS = Path(sys.prefix) / "peers" / "img2dataset"
REQUIREMENTS = Path(__file__).resolve().with_name("peers.txt")
TITLE = "Ingest with resize, against img2dataset"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--files", type=int, default=40_000)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    img2dataset = peer_environment()
    with tempfile.TemporaryDirectory() as name, http_server(Path(name) / "photos") as address:
        work = Path(name)
        files = repeat(given.photos, work / "photos", given.files)
        captions(work / "photos" / "captions.csv", "image", [file.name for file in files])
        captions(work / "files.csv", "url", [file.as_uri() for file in files])
        captions(work / "http.csv", "url", [f"{address}/{file.name}" for file in files])
        contestants: dict[str, Callable[[int], tuple[float, float]]] = {
            CEILING: lambda run: ceiling(files, given.workers),
            "sightline ingest, files": lambda run: ours(
                work / "photos" / "captions.csv", work / f"ours-{run}", len(files), given.workers
            ),
            "img2dataset, file://": lambda run: peer(
                img2dataset, work / "files.csv", work / f"file-{run}", len(files), given.workers
            ),
            "sightline ingest, HTTP on loopback": lambda run: ours(
                work / "http.csv",
                work / f"ours-http-{run}",
                len(files),
                given.workers,
                "--allow-loopback",
                "--per-host",
                str(CONNECTIONS),
            ),
            "img2dataset, HTTP on loopback": lambda run: peer(
                img2dataset, work / "http.csv", work / f"http-{run}", len(files), given.workers
            ),
        }
        times: dict[str, list[tuple[float, float]]] = {contestant: [] for contestant in contestants}
        for run in range(given.runs):
            for contestant, measure in contestants.items():
                times[contestant].append(measure(run))
                print(f"run {run}: {contestant}: {times[contestant][-1]}", file=sys.stderr, flush=True)
    report(times, given.files, given.runs, given.workers)


def repeat(photos: Path, folder: Path, count: int) -> list[Path]:
    """As many JPEGs as asked for; a photo that comes again is a link to itself."""
    originals = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not originals:
        raise SystemExit(f"{photos} has no .jpg files; name a folder of photos")
    files = [folder / f"{i:07d}.jpg" for i in range(count)]
    for i, file in enumerate(files):
        first = files[i % len(originals)]
        if first is file:
            file.write_bytes(originals[i].read_bytes())
        else:
            file.hardlink_to(first)
    return files


def captions(path: Path, column: str, values: list[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([column, "caption"])
        writer.writerows([value, f"photo {i}"] for i, value in enumerate(values))


# --- the contestants: each gives (seconds of work, seconds of the whole command)


def ceiling(files: list[Path], workers: int) -> tuple[float, float]:
    begun = time.perf_counter()
    with get_context("spawn").Pool(workers, one_thread) as pool:
        pool.map(convert, files[:workers], chunksize=1)  # imports are not work
        ready = time.perf_counter()
        for _ in pool.imap_unordered(convert, files, chunksize=64):
            pass
        done = time.perf_counter()
    return done - ready, time.perf_counter() - begun


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def convert(path: Path) -> int:
    import simplejpeg

    from sightline.models.preprocess import resample, to_CHW

    image = to_CHW(simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB"))
    height, width = image.shape[-2:]
    scale = min(1.0, SIDE / min(height, width))
    pixels = resample(image, round(height * scale), round(width * scale)).permute(1, 2, 0).contiguous().numpy()
    return len(simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="420"))


def ours(table: Path, dest: Path, count: int, workers: int, *more: str) -> tuple[float, float]:
    options = [*more, "--resize", f"shortest={SIDE}", "--encode", f"jpeg:{QUALITY}", "--cpus", str(workers), "--json"]
    command = [sys.executable, "-m", "sightline", "ingest", str(table), str(dest), *options]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    first = None
    while process.poll() is None:  # the mark that a worker makes when it begins a shard; the commit removes it
        marks = [mark.stat().st_mtime for mark in dest.glob("_staging/*/*.attempt*")] if first is None else []
        first = min(marks, default=first)
        time.sleep(0.02)
    whole = time.perf_counter() - begun
    assert process.stdout is not None and process.returncode == 0 and first is not None
    result = json.loads(process.stdout.read().splitlines()[-1])
    assert result["kept"] == count, result
    return (dest / "manifest.json").stat().st_mtime - first, whole


def peer(img2dataset: Path, table: Path, dest: Path, count: int, workers: int) -> tuple[float, float]:
    options = {
        "url_list": table,
        "input_format": "csv",
        "url_col": "url",
        "caption_col": "caption",
        "output_folder": dest,
        "output_format": "webdataset",
        "image_size": SIDE,
        "resize_mode": "keep_ratio",
        "resize_only_if_bigger": True,
        "encode_quality": QUALITY,
        "processes_count": workers,
        "thread_count": CONNECTIONS // workers,
        "number_sample_per_shard": max(1, min(1_000, count // workers)),
    }
    begun = time.perf_counter()
    flags = [f"--{name}={value}" for name, value in options.items()]
    subprocess.run(
        [img2dataset, *flags], check=True, stdout=subprocess.DEVNULL, env={**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    )
    whole = time.perf_counter() - begun
    stats = [json.loads(path.read_text()) for path in dest.glob("*_stats.json")]
    assert sum(stat["successes"] for stat in stats) == count, stats
    begins, ends = [stat["start_time"] for stat in stats], [stat["end_time"] for stat in stats]
    return max(ends) - min(begins), whole


def peer_environment() -> Path:
    """The img2dataset command of the environment beside ours, made if it is not there."""
    command = PEERS / "bin" / "img2dataset"
    if not command.exists():
        venv.create(PEERS, with_pip=True, clear=True)
        pip = [PEERS / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True, stdout=sys.stderr)
    return command


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    """A server of a folder's files in a process of its own, which takes a twentieth of the cores; its address."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder.parent / "nothing.py").write_text(NOTHING_ELSE)
    options = ["--interface", "asginl", "--port", str(port), "--static-path-mount", str(folder), "--static-path-route", "/photos"]
    server = subprocess.Popen([PEERS / "bin" / "granian", *options, "nothing:app"], cwd=folder.parent, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the server of the photos did not start"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/photos"
    finally:
        server.terminate()
        server.wait()


NOTHING_ELSE = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})
"""


def report(times: dict[str, list[tuple[float, float]]], files: int, runs: int, workers: int) -> None:
    work = {name: files / median(seconds for seconds, _ in measured) for name, measured in times.items()}
    whole = {name: files / median(seconds for _, seconds in measured) for name, measured in times.items()}
    lines = [
        (
            name,
            f"{work[name]:,.0f}",
            f"{work[name] / work[CEILING]:.2f}",
            f"{whole[name]:,.0f}",
            f"{files / whole[name] - files / work[name]:.1f}",
            f"{work[AGAINST[name]] / work[name]:.2f}" if name in AGAINST else "",
            f"{whole[AGAINST[name]] / whole[name]:.2f}" if name in AGAINST else "",
        )
        for name in times
    ]
    pins = [line for line in REQUIREMENTS.read_text().splitlines() if line.startswith(("img2dataset", "opencv"))]
    versions = f"{environment('sightline', 'ray', 'torch', 'simplejpeg', 'pyarrow')}; {', '.join(pins)}"
    body = f"""`python -m benchmarks.ingest_vs_img2dataset PHOTOS`: {files:,} JPEG files to a shorter side of {SIDE} pixels, quality
{QUALITY}, {workers} processes, medians of {runs} runs that took turns; {versions}. "Work" leaves out the start of processes:
it is from the first shard's beginning to the commit (of img2dataset: to the last shard's end); "command" is all that one waits for.
The bare loop hashes and writes nothing; what Sightline's work takes longer is the writing (a twentieth), Ray's own processes (a
twentieth), and the first and last shards. Over HTTP each program has {CONNECTIONS} connections, and the server shares the cores:
a download costs Sightline half a millisecond of CPU beside the millisecond and a half of the conversion.
img2dataset scales down by area, which is cheaper than the antialiased bicubic kernel of the other two.

"""
    ahead = ("Sightline's work is faster by", "Sightline's command is faster by")
    header = ("", "work, images/s", "of the ceiling", "command, images/s", "the difference, s", *ahead)
    text = body + table(header, lines)
    print(text)
    write_section(TITLE, text)


if __name__ == "__main__":
    main()
