"""GradCache: what a large batch costs in parts, in seconds and in memory, in a process each.

    python -m benchmarks.grad_cache

`clip_small`'s towers, forward and backward with InfoNCE over the whole batch. Memory is what came on top of the inputs.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from statistics import median

import torch
from torch import Tensor

from benchmarks.report import section
from sightline.models.losses import Share
from sightline.models.objectives import Contrastive, Targets
from sightline.models.text import Tokenizer, get_tokenizer
from sightline.models.towers import Towers, build
from sightline.recipes import find_recipe

AT_ONCE, TIMED, TIMED_AT_ONCE, LARGEST, RUNS = 16, 256, 64, 64 * 16, 5


def main() -> None:
    whole, parts = [], []
    for _ in range(RUNS):
        whole.append(alone(TIMED, TIMED)[0])
        parts.append(alone(TIMED, TIMED_AT_ONCE)[0])
    peaks = {batch: median(alone(batch, AT_ONCE)[1] for _ in range(3)) for batch in (AT_ONCE, 4 * AT_ONCE, 16 * AT_ONCE, LARGEST)}
    at_once = alone(TIMED, TIMED)[1]
    rows = [
        (f"{TIMED} pairs at once", f"{median(whole):.2f} s", "1.00", f"{at_once / 2**20:,.0f} MiB"),
        (f"{TIMED} pairs, {TIMED_AT_ONCE} at once", f"{median(parts):.2f} s", f"{median(parts) / median(whole):.2f}", ""),
        *((f"{batch:,} pairs, {AT_ONCE} at once", "", "", f"{peak / 2**20:,.0f} MiB") for batch, peak in peaks.items()),
    ]
    what = f"`clip_small`'s towers, forward and backward, float32; medians of {RUNS} processes that took turns"
    section("GradCache", "python -m benchmarks.grad_cache", what, ("torch",), ("", "seconds", "of one graph", "peak memory"), rows)


def alone(batch: int, at_once: int) -> tuple[float, float]:
    """Seconds and peak bytes in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.grad_cache", str(batch), str(at_once)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)


def measure(batch: int, at_once: int) -> None:
    torch.manual_seed(0)
    config = find_recipe("clip_small").model
    towers, tokenizer = build(config).train(), get_tokenizer(config.tokenizer, config.context_length)
    captions = [f"photo number {number} of a thing" for number in range(batch)]
    inputs = torch.rand(batch, 3, config.preprocess.size, config.preprocess.size)
    run(towers, tokenizer, inputs[:8], captions[:8], 4)  # libraries wake up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    run(towers, tokenizer, inputs, captions, at_once)
    seconds = time.perf_counter() - begun
    print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def run(towers: Towers, tokenizer: Tokenizer, inputs: Tensor, captions: list[str], at_once: int) -> None:
    backward = Contrastive().prepare(tokenizer, Share.of(len(inputs)), lambda: captions, at_once)
    backward(towers, inputs, Targets(captions), torch.manual_seed)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
