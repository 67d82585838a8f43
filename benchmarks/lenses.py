"""How long a lens makes one wait: each one on DeiT-Tiny, the gallery, and the effective receptive field on one worker and on two.

    python -m benchmarks.lenses CORPUS WEIGHTS [MODEL CORPUS]

CORPUS is of labelled photos (`train` and `val`); WEIGHTS is a DeiT-Tiny of ImageNet in safetensors, with timm's names. The gallery
is timed for it and, where they are given, for a dual encoder of ours and its corpus. Seconds are those of whole commands, imports
and Ray's start among them. The field's figure must have the same bytes at one worker and at two.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks.command import sightline
from benchmarks.report import section

DEIT = "timm/deit_tiny_patch16_224"
ERF_MODEL, SEEDS, IMAGES, RUNS = "timm/resnet18", 64, 32, 3


def main(corpus: str, weights: str, *ours: str) -> None:
    verbs = {
        "receptive-field timm/resnet50": ("receptive-field", "timm/resnet50", "--seed", "0"),
        "erf": ("erf", DEIT, "--weights", weights, "--corpus", corpus),
        "attention": ("attention", DEIT, corpus, "--weights", weights),
        "positions": ("positions", DEIT, "--weights", weights),
        "nlmeans": ("nlmeans", corpus),
        "gallery": ("gallery", DEIT, corpus, "--weights", weights),
    }
    if ours:
        verbs["gallery of a dual encoder of ours"] = ("gallery", *ours)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = []
        for number, (what, verb) in enumerate(verbs.items()):
            rows.append((what, f"{timed(folder / str(number), *verb):.1f} s"))
        one, two = workers(folder)
    rows.append((f"erf, {SEEDS} random {ERF_MODEL} × {IMAGES} images, one worker", f"{one:.1f} s"))
    rows.append(("the same, two workers", f"{two:.1f} s: {two / one:.2f} of it, same bytes"))
    what = f"whole commands, on DeiT-Tiny where nothing else is said; the last two are medians of {RUNS} runs that took turns"
    packages = ("torch", "timm", "ray", "matplotlib")
    section("Lenses", "python -m benchmarks.lenses CORPUS WEIGHTS [MODEL CORPUS]", what, packages, ("lens", "seconds"), rows)


def timed(out: Path, *verb: str) -> float:
    began = time.perf_counter()
    sightline("lens", *verb, "--out", out)
    return time.perf_counter() - began


def workers(folder: Path) -> tuple[float, float]:
    """Seconds on one worker and on two."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    figures = set()
    for run in range(RUNS):
        for cpus, found in seconds.items():
            out = folder / f"erf-{run}-{cpus}"
            options = ("--no-trained", "--seeds", str(SEEDS), "--images", str(IMAGES), "--cpus", str(cpus))
            found.append(timed(out, "erf", ERF_MODEL, *options))
            figures.add((out / "erf.svg").read_bytes())
            print(f"run {run}: {cpus} workers: {found[-1]:.1f} s", file=sys.stderr, flush=True)
    assert len(figures) == 1, "the figure depends on the number of workers"
    return median(seconds[1]), median(seconds[2])


if __name__ == "__main__":
    main(*sys.argv[1:])
