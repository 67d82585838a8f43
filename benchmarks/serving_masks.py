"""What of a request for masks is their encoding: decoding, segmenting and encoding photos by a tower of the size of ViT-B/32.

python -m benchmarks.serving_masks PHOTOS

The stages are those of `/v1/segment`, called without a server; random weights, ten labels whose embeddings are already there.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch

from benchmarks.report import section
from benchmarks.serving import LABELS, artifact
from sightline.models.codec import decode_rgb
from sightline.recipes import find_recipe
from sightline.serve.limits import Limits
from sightline.serve.results import segmented
from sightline.serve.served import load

PHOTOS, RUNS, THREADS = 16, 3, 2
FORMATS = ("png", "rle", "scores")


def main(photos: str) -> None:
    bodies = [path.read_bytes() for path in itertools.islice(sorted(Path(photos).rglob("*.jp*g")), PHOTOS)]
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as name:
        engine = load(str(artifact(Path(name) / "b32", find_recipe("clip_vit_b32").model)), "float32").engine
        engine.segmentation(decode_rgb(bodies[0], max_pixels=Limits().max_pixels), LABELS)
        spent: dict[str, list[float]] = {stage: [] for stage in ("decode", "segment", *FORMATS)}
        for body in [body for body in bodies for _ in range(RUNS)]:
            began = time.perf_counter()
            rgb_HWC = decode_rgb(body, max_pixels=Limits().max_pixels)
            decoded = time.perf_counter()
            found = engine.segmentation(rgb_HWC, LABELS)
            spent["decode"].append(decoded - began)
            spent["segment"].append(time.perf_counter() - decoded)
            for form in FORMATS:
                began = time.perf_counter()
                segmented(found, LABELS, form).model_dump_json()
                spent[form].append(time.perf_counter() - began)
    seconds = {stage: median(some) for stage, some in spent.items()}
    before = seconds["decode"] + seconds["segment"]
    rows = [(stage, f"{1000 * seconds[stage]:.1f} ms", "") for stage in ("decode", "segment")]
    rows += [
        (f"encode as {form}", f"{1000 * seconds[form]:.1f} ms", f"{seconds[form] / (before + seconds[form]):.1%}")
        for form in FORMATS
    ]
    megapixels = found.label_map_HW.size / 1e6
    what = f"{len(bodies)} photos of about {megapixels:.2f} megapixels, {len(LABELS)} labels, {THREADS} threads; medians"
    header = ("stage", "time", "of a request")
    section("Masks in a request", "python -m benchmarks.serving_masks PHOTOS", what, ("torch", "pillow"), header, rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
