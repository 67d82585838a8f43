"""Fine-tuning: `imagenette_finetune` on ten classes of photos, at its own resolution and at a higher one.

    python -m benchmarks.imagenette PHOTOS WEIGHTS

PHOTOS has a folder per class in `train` and `val`; WEIGHTS is a DeiT-Tiny of ImageNet in safetensors, with timm's names. One
process on the CPU in fp32. Seconds are those of the whole command, from its start to the artifact.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.command import sightline
from benchmarks.report import section
from sightline.recipes import find_recipe

SIZES = (224, 288)


def main(photos: str, weights: str) -> None:
    spec, rows = find_recipe("imagenette_finetune"), []
    with tempfile.TemporaryDirectory() as name:
        corpus = Path(name) / "corpus"
        sightline("ingest", photos, corpus)
        for size in SIZES:
            began = time.perf_counter()
            settings = (f"corpus={corpus}", f"model.pretrained_image={weights}", f"size={size}")
            options = ("--runs", f"{name}/runs", "--without-ray", "--track", "none")
            artifact = sightline("train", "imagenette_finetune", *settings, *options)["artifact"]
            seconds = time.perf_counter() - began
            scores = sightline("evaluate", artifact, corpus, "--split", "val")["metrics"]
            rows.append((f"{size} × {size}", f"{seconds:.0f} s", f"{scores['top1']:.2%}"))
    what = f"{spec.steps} steps of {spec.global_batch} photos from a pretrained DeiT-Tiny; {scores['top1_rows']} photos to score on"
    header = ("resolution", "command", "top-1")
    section("Fine-tuning", "python -m benchmarks.imagenette PHOTOS WEIGHTS", what, ("torch", "timm"), header, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
