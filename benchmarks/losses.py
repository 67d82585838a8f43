"""The streamed InfoNCE against the plain one: seconds of forward and backward, and peak memory, in a process each.

python -m benchmarks.losses
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import section
from sightline.models.losses import Share, info_nce

TIMED, LARGE, WIDTH, RUNS = 8_192, 32_768, 512, 5
WAYS = ("plain", "streamed")


def main() -> None:
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(RUNS):
        for way in WAYS:
            seconds[way].append(alone(way, TIMED)[0])
    peaks = {way: alone(way, LARGE)[1] for way in WAYS}
    plain = median(seconds["plain"]), peaks["plain"]
    rows = []
    for way in WAYS:
        time_s, peak = median(seconds[way]), peaks[way]
        rows.append((way, f"{time_s:.2f} s", f"{time_s / plain[0]:.2f}", f"{peak / 2**20:,.0f} MiB", f"1/{plain[1] / peak:.0f}"))
    what = (
        f"InfoNCE in float32, forward and backward, {WIDTH} wide; medians of {RUNS} processes that took turns; "
        "memory is what came on top of the inputs"
    )
    header = ("", f"{TIMED:,} pairs", "of plain", f"peak at {LARGE:,} pairs", "of plain")
    section("Contrastive loss", "python -m benchmarks.losses", what, ("torch",), header, rows)


def alone(way: str, pairs: int) -> tuple[float, float]:
    """Seconds and peak bytes of one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.losses", way, str(pairs)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def measure(way: str, pairs: int) -> None:
    random = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(pairs, WIDTH, generator=random), dim=-1).requires_grad_() for _ in range(2))
    scale = torch.tensor(20.0, requires_grad=True)
    run(way, *(tensor.detach()[:256].clone().requires_grad_() for tensor in (image, text)), scale)  # libraries wake up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    run(way, image, text, scale)
    seconds = time.perf_counter() - begun
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def run(way: str, image: Tensor, text: Tensor, scale: Tensor) -> None:
    if way == "streamed":
        loss = info_nce(image, text, scale, Share.of(len(image)))
    else:
        logits = scale * image @ text.T
        target = torch.arange(len(image))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss.backward()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], int(sys.argv[2]))
    else:
        main()
