"""Fine-tuning: `imagenette_finetune` on ten classes of photos, at its own resolution and at a higher one.

    python -m benchmarks.imagenette PHOTOS WEIGHTS

PHOTOS has a folder per class in `train` and `val`; WEIGHTS is a DeiT-Tiny of ImageNet in safetensors, with timm's names. One
process on the CPU in fp32. Seconds are those of the whole command, from its start to the artifact.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
            scores = sightline("evaluate", artifact, corpus, "--split", "val")
            rows.append((f"{size} × {size}", f"{seconds:.0f} s", f"{scores['top1']:.2%}"))
    what = f"{spec.steps} steps of {spec.global_batch} photos from a pretrained DeiT-Tiny; {scores['images']} photos to score on"
    header = ("resolution", "command", "top-1")
    section("Fine-tuning", "python -m benchmarks.imagenette PHOTOS WEIGHTS", what, ("torch", "timm"), header, rows)


def sightline(*arguments: object) -> dict[str, Any]:
    """What a command says in JSON."""
    verb = [sys.executable, "-m", "sightline", *map(str, arguments), "--json"]
    done = subprocess.run(verb, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main(*sys.argv[1:])
