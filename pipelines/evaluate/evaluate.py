"""Zero-shot scores of a model on a corpus: classification, retrieval, and masks where there are any.

A row takes part in classification if it has exactly one label; the prompts are all class names but the background. A class is *held
out* if it occurs in the corpus but in no row of its training split: what a model knows of it, it put together itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.clip import Clip
from sightline.models.codec import decode_labels, decode_rgb
from sightline.models.segment import BACKGROUND, segment
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.metrics import intersection_and_union, recall_at_k, topk_accuracy

BATCH = 64
TRAIN, TEST = "train", "test"
# Retrieval compares everything with everything; larger sets are cut to their first rows, and the report says so.
RETRIEVAL_ROWS = 5_000
SEGMENTED_ROWS = 400


@dataclass(frozen=True)
class Evaluation:
    """Metrics by name (fractions from 0 to 1; counts end in `rows` or `images`), and what they were computed on."""

    model: str
    revision: str
    corpus_root: str
    split: str | None
    metrics: dict[str, float]


def evaluate(
    model: Clip,
    corpus: Corpus,
    split: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """All scores that the corpus has the truth for.

    Args:
        split: which rows; None is `test` where the corpus has such a split, otherwise all rows.

    Raises:
        ValueError: no row is in the split.
    """
    if split is None and TEST in corpus.splits:
        split = TEST
    rows = corpus.select(split)
    if not len(rows):
        raise ValueError(f"{corpus.location} has no rows in split {split!r}; it has {corpus.splits or 'no rows at all'}")
    image_ND = embed_rows(model, corpus, rows, progress)
    metrics: dict[str, float] = {"images": len(rows)}
    metrics |= zero_shot(model, corpus, rows, image_ND)
    metrics |= retrieval(model, corpus, rows[:RETRIEVAL_ROWS], image_ND[:RETRIEVAL_ROWS])
    metrics |= segmentation(model, corpus, rows, progress)
    return Evaluation(model.name, model.revision, corpus.root, split, metrics)


def embed_rows(model: Clip, corpus: Corpus, rows: NDArray[np.int64], progress: Callable[[str, int, int], None]) -> Tensor:
    """Unit image embeddings [N, D] of corpus rows, through the same preprocessing as in serving."""
    parts = []
    for first in range(0, len(rows), BATCH):
        pixels = [
            model.preprocess.pixels(decode_rgb(corpus.image(int(row)), max_pixels=corpus.max_pixels))
            for row in rows[first : first + BATCH]
        ]
        parts.append(model.embed_images(torch.stack(pixels)).cpu())
        progress("embed", min(first + BATCH, len(rows)), len(rows))
    return torch.cat(parts)


def zero_shot(model: Clip, corpus: Corpus, rows: NDArray[np.int64], image_ND: Tensor) -> dict[str, float]:
    """Top-1 and top-5 among all class names, on classes seen in training and on held-out ones."""
    prompts = {number: name for number, name in enumerate(corpus.classes) if name and name != BACKGROUND}
    labels = corpus.sidecar(["labels"])["labels"].to_pylist()
    single = [i for i, row in enumerate(rows) if len(set(labels[row])) == 1 and labels[row][0] in prompts]
    if not single or len(prompts) < 2:
        return {}
    column = {number: i for i, number in enumerate(prompts)}
    logits_NL = image_ND[single] @ model.classifier(list(prompts.values())).cpu().T
    target_N = torch.tensor([column[labels[rows[i]][0]] for i in single])
    trained_on = {number for row in corpus.select(TRAIN) for number in labels[row]} if TRAIN in corpus.splits else set(prompts)
    seen_N = torch.tensor([labels[rows[i]][0] in trained_on for i in single])
    scores: dict[str, float] = {"zero_shot_classes": len(prompts)}
    for name, which_N in (("", torch.ones_like(seen_N)), ("_seen", seen_N), ("_held_out", ~seen_N)):
        if which_N.any() and (name == "" or not seen_N.all()):
            scores[f"top1{name}"] = topk_accuracy(logits_NL[which_N], target_N[which_N], 1)
            scores[f"top5{name}"] = topk_accuracy(logits_NL[which_N], target_N[which_N], 5)
            scores[f"top1{name}_rows"] = int(which_N.sum())
    return scores


def retrieval(model: Clip, corpus: Corpus, rows: NDArray[np.int64], image_ND: Tensor) -> dict[str, float]:
    """Recall@1, 5, 10 both ways, each image with all its captions."""
    captions = [corpus.captions(int(row)) for row in rows]
    flat = [caption for some in captions for caption in some]
    owner = [i for i, some in enumerate(captions) for _ in some]
    text_MD = torch.cat([model.embed_texts(part).cpu() for part in _parts(flat, 256)])
    return recall_at_k(image_ND @ text_MD.T, owner) | {"retrieval_images": len(rows), "retrieval_captions": len(flat)}


def segmentation(
    model: Clip, corpus: Corpus, rows: NDArray[np.int64], progress: Callable[[str, int, int], None]
) -> dict[str, float]:
    """Foreground IoU given the labels in the image: intersections over unions, summed over objects and images."""
    chosen = [int(row) for row in rows if corpus.mask(int(row)) is not None]
    # Evenly spaced, so that a cut set is a sample of the whole.
    chosen = chosen[:: max(1, len(chosen) // SEGMENTED_ROWS)][:SEGMENTED_ROWS]
    intersection = union = 0
    for done, row in enumerate(chosen):
        mask = corpus.mask(row)
        assert mask is not None
        truth_HW = decode_labels(mask, max_pixels=corpus.max_pixels)
        present = [int(number) for number in np.unique(truth_HW) if number < len(corpus.classes)]
        present = [number for number in present if corpus.classes[number] not in ("", BACKGROUND)]
        if present:
            found = segment(
                model, decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels), [corpus.classes[number] for number in present]
            )
            lookup = np.array([len(corpus.classes), *present])  # 0, our background, is no class
            both, either = intersection_and_union(lookup[found.label_map_HW], truth_HW, present)
            intersection, union = intersection + both, union + either
        progress("segment", done + 1, len(chosen))
    return {"foreground_iou": intersection / union, "segmented_images": len(chosen)} if union else {}


def _parts(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
