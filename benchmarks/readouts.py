"""Ways to read masks off a model without training, on labelled masks; each table goes to docs/segmentation.md.

    python -m benchmarks.readouts MODEL CORPUS [MODEL CORPUS ...]

Each way changes one thing of the defaults. IoU of the foreground given the labels in the image, mean IoU among all labels.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from benchmarks.report import environment, table, write_section
from sightline.models.clip import Clip
from sightline.models.dense import DEFAULT, READOUTS, dense_features
from sightline.models.load import load_model
from sightline.models.segment import SegmentOptions
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.protocols import evaluated
from sightline.pipelines.evaluate.segmentation import metrics_of, options_for, score_masks, with_masks

REPORT = Path(__file__).resolve().parent.parent / "docs" / "segmentation.md"
IMAGES, RUNS = 40, 25
WAYS = {
    "not refined": ["refine_steps=0"],
    "by direction alone": ["cosine=true"],
    "by direction alone, not refined": ["cosine=true", "refine_steps=0"],
    "no contrast prompts but the labels": ["contrast=[]"],
    "common words as contrast": [f"contrast={list(SegmentOptions().contrast)}".replace("'", '"')],
    "threshold 0.3": ["threshold=0.3"],
    "threshold 0.7": ["threshold=0.7"],
}


def main() -> None:
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    if not pairs:
        sys.exit(__doc__)
    for name, folder in pairs:
        model, corpus = load_model(name), Corpus.open(folder)
        body = measured(model, corpus)
        print(body, flush=True)
        write_section(f"{model.name.rsplit('-', 1)[0]} on {Path(folder).name}", body, REPORT)


def measured(model: Clip, corpus: Corpus) -> str:
    side = model.preprocess.size
    ways = {"default": [], **WAYS, "two sizes by windows": [f"sizes=[{side},{side * 3 // 2}]"]}
    if is_transformer(model):
        ways |= {f"readout {name}": [f"readout={name}"] for name in READOUTS if name != DEFAULT}
    split = evaluated(corpus, None)
    rows = with_masks(corpus, corpus.select(split), IMAGES)
    lines = []
    for way, options in ways.items():
        found = metrics_of(score_masks(model, corpus, rows, lambda what, done, total: None, options_for(model, options)), ())
        shares = (found[name] for name in ("foreground_iou_given_labels", "foreground_iou_among_all", "mean_iou"))
        lines.append((way, *(f"{100 * share:.1f}" for share in shares)))
    header = ("way", "IoU given the labels", "IoU among all", "mean IoU among all")
    default = f"readout {DEFAULT}" if is_transformer(model) else "its map"
    versions = environment("torch", "open_clip_torch", "timm")
    return (
        f"`python -m benchmarks.readouts MODEL CORPUS`: {len(rows)} images of split {split}, root {corpus.root[:12]}; "
        f"default: {default}, {SegmentOptions.for_model(model).refine_steps} steps of refinement. Reading places takes "
        f"{overhead(model):.2f} of the time of `encode_image`. {versions}.\n\n{table(header, lines)}"
    )


def is_transformer(model: Clip) -> bool:
    """Whether the readouts differ at all."""
    try:
        dense_features(model.towers, torch.zeros(1, 3, model.preprocess.size, model.preprocess.size), DEFAULT)
    except ValueError:
        return False
    return True


@torch.inference_mode()
def overhead(model: Clip) -> float:
    """The best of several readouts over the best of several encodings, which take turns."""
    image = torch.randn(8, 3, model.preprocess.size, model.preprocess.size)
    spent: dict[str, list[float]] = {"encode": [], "read": []}
    for _ in range(RUNS):
        for what, work in (("encode", model.towers.encode_image), ("read", lambda x: dense_features(model.towers, x))):
            began = time.perf_counter()
            work(image)
            spent[what].append(time.perf_counter() - began)
    return min(spent["read"]) / min(spent["encode"])


if __name__ == "__main__":
    main()
