"""Training speed against open_clip's own trainer: `clip_small` on the same photos, batch and threads, an epoch each in turns.

    python -m benchmarks.speed_vs_open_clip CORPUS

Both in one process on the CPU in fp32. Samples per second are the median over an epoch's steps without the first ten, each from
the end of the one before to its own, waiting for data included.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.clip_small_vs_open_clip import run_peer
from benchmarks.report import section
from sightline.pipelines.corpus.reader import Corpus
from sightline.recipes import find_recipe

RUNS, WARM_UP = 3, 10


def main(corpus_path: str) -> None:
    corpus, spec = Corpus.open(corpus_path), find_recipe("clip_small")
    steps = sum(len(corpus.captions(int(row))) for row in corpus.select("train")) // spec.global_batch
    rates: dict[str, list[float]] = {"Sightline": [], "open_clip": []}
    for seed in range(RUNS):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run_peer(corpus, spec, seed, folder, epochs=1, log_every=1)
            log = (folder / "logs" / "peer" / "out.log").read_text()
            found = [float(rate) for rate in re.findall(r"Batch \(t\): [\d.]+, ([\d.e+]+)/s", log)]
            assert len(found) == steps, (len(found), steps)
            rates["open_clip"].append(median(found[WARM_UP:]))
            rates["Sightline"].append(ours(corpus_path, steps, seed, folder))
    peer = median(rates["open_clip"])
    rows = [
        (who, f"{median(found):.1f}", ", ".join(f"{rate:.1f}" for rate in found), f"{median(found) / peer:.2f}")
        for who, found in rates.items()
    ]
    what = f"`clip_small`, {steps} steps of {spec.global_batch} pairs, {RUNS} runs of each that took turns"
    header = ("", "samples/s, median", "each run", "of open_clip")
    section(
        "Training speed on the CPU",
        "python -m benchmarks.speed_vs_open_clip CORPUS",
        what,
        ("torch", "open_clip_torch"),
        header,
        rows,
    )


def ours(corpus: str, steps: int, seed: int, folder: Path) -> float:
    """The same number of steps, without Ray."""
    verb = [sys.executable, "-m", "sightline", "train", "clip_small", f"corpus={corpus}", f"steps={steps}", f"seed={seed}"]
    options = ["--runs", str(folder / "runs"), "--without-ray", "--track", "none", "--json"]
    done = subprocess.run([*verb, *options], check=True, stdout=subprocess.PIPE, text=True)
    run = Path(json.loads(done.stdout.splitlines()[-1])["artifact"]).parent
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return median(line["samples_per_s"] for line in lines[WARM_UP:])


if __name__ == "__main__":
    main(*sys.argv[1:])
