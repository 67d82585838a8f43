"""The image tower of the size of ViT-B/32 by each way that a CPU replica could compute it: milliseconds, and distance from float32.

python -m benchmarks.serving_engines
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import section
from benchmarks.serving import artifact
from sightline.models.artifact import golden_images
from sightline.models.clip import Clip
from sightline.models.interchange.onnx import ImageEncoder, trace
from sightline.models.load import load_model
from sightline.recipes import find_recipe
from sightline.serve.precision import in_bfloat16

BATCHES, RUNS, THREADS = (1, 8), 9, 2
Embed = Callable[[Tensor], Tensor]


def main() -> None:
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        model = load_model(str(artifact(Path(name) / "b32", find_recipe("clip_vit_b32").model)))
        ways: dict[str, Embed] = {
            "torch, float32": model.embed_images,
            "torch, bfloat16 weights": in_bfloat16(model).embed_images,
            "onnxruntime, float32": onnx(model, Path(name) / "image.onnx"),
        }
        golden = golden_images(model.preprocess.size)
        want = model.embed_images(golden)
        rows = []
        for way, embed in ways.items():
            difference = float((1 - F.cosine_similarity(embed(golden), want, dim=-1)).max())
            rows.append(
                (way, *(f"{1000 * seconds(embed, model, batch):.0f} ms" for batch in BATCHES), f"{max(0.0, difference):.1e}")
            )
    what = (
        f"{THREADS} threads, medians of {RUNS} runs; random weights; the difference is the largest 1 − cosine on the golden images"
    )
    header = ("", *(f"batch of {batch}" for batch in BATCHES), "difference")
    section(
        "The image tower of a CPU replica", "python -m benchmarks.serving_engines", what, ("torch", "onnxruntime"), header, rows
    )


def onnx(model: Clip, path: Path) -> Embed:
    """The same tower exported, with the normalisation inside."""
    trace(ImageEncoder(model.towers.visual, model.preprocess), golden_images(model.preprocess.size), "pixels", path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(path, options)

    def embed(pixels: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {"pixels": pixels.numpy()})[0]))

    return embed


def seconds(embed: Embed, model: Clip, batch: int) -> float:
    side = model.preprocess.size
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
    embed(pixels)
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        embed(pixels)
        taken.append(time.perf_counter() - began)
    return median(taken)


if __name__ == "__main__":
    main()
