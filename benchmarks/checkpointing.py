"""How long training is held up by a save: ours, which goes on in the background, against the same state saved while training waits.

    python -m benchmarks.checkpointing

One process, fp32: weights and AdamW's moments of a ViT-B/32 CLIP, on the disk that temporary files are on. A step is a forward and
a backward pass over a few pairs, and the update. Held up is what `begin` and `copied` take; waiting is `begin` and `finish`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from benchmarks.report import section
from sightline.models.sharding import make_mesh, shard
from sightline.models.towers import build
from sightline.pipelines.train.checkpoints import Checkpoints, State
from sightline.pipelines.train.optim import OptimConfig, adamw
from sightline.recipes import find_recipe

REPEATS = 5
PAIRS = 8


def main() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    spec = find_recipe("clip_vit_b32")
    towers = shard(build(spec.model), make_mesh("ddp", "cpu", 1, 1), bf16=False)
    optimizer = adamw(towers, OptimConfig(lr=1e-6))
    size = spec.model.preprocess.size
    image, text = torch.rand(PAIRS, 3, size, size), torch.randint(1, 400, (PAIRS, spec.model.context_length))

    def passes() -> None:
        image_D, text_D, *_ = towers(image, text)
        (image_D @ text_D.T).sum().backward()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    passes()
    update()
    waiting: list[float] = []
    held_up: list[float] = []
    beside: list[float] = []
    alone: list[float] = []
    state = State(towers, optimizer)
    with tempfile.TemporaryDirectory() as name:
        saves = Checkpoints(Path(name), "bench", keep=1)
        for repeat in range(REPEATS):
            began = time.perf_counter()
            saves.begin(2 * repeat, 0.0, "", state)
            saves.finish()
            waiting.append(time.perf_counter() - began)

            began = time.perf_counter()
            saves.begin(2 * repeat + 1, 0.0, "", state)
            started = time.perf_counter() - began
            beside.append(timed(passes))
            began = time.perf_counter()
            saves.copied()
            held_up.append(started + time.perf_counter() - began)
            update()
            saves.finish()
            alone.append(timed(passes))
            update()
        saves.close()
    state_bytes = 3 * sum(parameter.numel() * 4 for parameter in towers.parameters())
    what = (
        f"a ViT-B/32 CLIP's weights and AdamW's moments, {state_bytes / 1e9:.2f} GB, one process on the CPU, {REPEATS} saves "
        f"each in turn; forward and backward beside a save took {median(beside):.2f} s, alone {median(alone):.2f} s (medians)"
    )
    rows = [(name, *figures(values, waiting)) for name, values in (("waits", waiting), ("in the background", held_up))]
    header = ("", "held up, median", "least – most", "of waiting")
    section("Checkpoints: how long a save holds training up", "python -m benchmarks.checkpointing", what, ("torch",), header, rows)


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def figures(values: list[float], all_of: list[float]) -> tuple[str, str, str]:
    return (
        f"{median(values):.3f} s",
        f"{min(values):.3f} – {max(values):.3f} s",
        f"{median(values) / median(all_of):.1%}",
    )


if __name__ == "__main__":
    main()
