"""Scores of a model on a corpus: zero-shot classification, retrieval, and masks where there are any; of a classifier, its accuracy;
of a model that predicts captions, zero-shot classification and how well it does.

A row takes part in classification if it has exactly one label; the prompts are all class names but the background. A class is *held
out* if it occurs in the corpus but in no row of its training split: what a model knows of it, it put together itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.artifact import Ready
from sightline.models.classifier import TrainedClassifier
from sightline.models.clip import Clip
from sightline.models.codec import decode_labels, decode_rgb
from sightline.models.predictive import TrainedPredictor
from sightline.models.segment import segment
from sightline.models.zeroshot import BACKGROUND
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.classify import classify
from sightline.pipelines.evaluate.images import BATCH, rows_through
from sightline.pipelines.evaluate.metrics import intersection_and_union, recall_at_k, topk_accuracy

T = TypeVar("T")
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
    model: Ready,
    corpus: Corpus,
    split: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Evaluation:
    """All scores that the corpus has the truth for.

    Args:
        split: which rows; None is `test` where the corpus has such a split, otherwise all rows.

    Raises:
        ValueError: no row is in the split, or a classifier knows none of the labels there.
    """
    if split is None and TEST in corpus.splits:
        split = TEST
    rows = corpus.select(split)
    if not len(rows):
        raise ValueError(f"{corpus.location} has no rows in split {split!r}; it has {corpus.splits or 'no rows at all'}")
    metrics: dict[str, float] = {"images": len(rows)}
    if isinstance(model, TrainedClassifier):
        metrics |= classify(model, corpus, rows, progress)
        return Evaluation(model.name, model.revision, corpus.root, split, metrics)
    if isinstance(model, TrainedPredictor):
        metrics |= zero_shot(predicted_logits(model, corpus, rows, progress), corpus, rows)
        metrics |= caption_loss(model, corpus, rows)
        return Evaluation(model.name, model.revision, corpus.root, split, metrics)
    image_ND = embed_rows(model, corpus, rows, progress)
    metrics |= zero_shot(lambda chosen, names: image_ND[chosen] @ model.classifier(names).cpu().T, corpus, rows)
    metrics |= retrieval(model, corpus, rows[:RETRIEVAL_ROWS], image_ND[:RETRIEVAL_ROWS])
    metrics |= segmentation(model, corpus, rows, progress)
    return Evaluation(model.name, model.revision, corpus.root, split, metrics)


def embed_rows(model: Clip, corpus: Corpus, rows: NDArray[np.int64], progress: Callable[[str, int, int], None]) -> Tensor:
    """Unit image embeddings [N, D] of corpus rows, through the same preprocessing as in serving."""
    return rows_through(model.embed_images, model.preprocess, corpus, rows, progress)


def zero_shot(logits: Callable[[list[int], list[str]], Tensor], corpus: Corpus, rows: NDArray[np.int64]) -> dict[str, float]:
    """Top-1 and top-5 among all class names, on classes seen in training and on held-out ones.

    Args:
        logits: how well names fit images, [n, L]; called with places among the rows and with all names.
    """
    prompts = {number: name for number, name in enumerate(corpus.classes) if name and name != BACKGROUND}
    labels = corpus.sidecar(["labels"])["labels"].to_pylist()
    single = [i for i, row in enumerate(rows) if len(set(labels[row])) == 1 and labels[row][0] in prompts]
    if not single or len(prompts) < 2:
        return {}
    column = {number: i for i, number in enumerate(prompts)}
    logits_NL = logits(single, list(prompts.values()))
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


def predicted_logits(
    model: TrainedPredictor, corpus: Corpus, rows: NDArray[np.int64], progress: Callable[[str, int, int], None]
) -> Callable[[list[int], list[str]], Tensor]:
    """How well names fit images, as `zero_shot` asks for it."""

    def logits(chosen: list[int], names: list[str]) -> Tensor:
        through = partial(rows_through, lambda pixels: model.logits(model.encode(pixels), names), model.preprocess, corpus)
        return through(rows[chosen], progress)

    return logits


def caption_loss(model: TrainedPredictor, corpus: Corpus, rows: NDArray[np.int64]) -> dict[str, float]:
    """Nats a token of the rows' captions, each caption counting once."""
    pairs = [(int(row), caption) for row in rows for caption in corpus.captions(int(row))]
    found = []
    for part in _parts(pairs, BATCH):
        encoded = rows_through(model.encode, model.preprocess, corpus, [row for row, _ in part], lambda what, done, total: None)
        found.append(model.surprise(encoded, [caption for _, caption in part]))
    return {"caption_loss": float(torch.cat(found).double().mean()), "captions": len(pairs)} if pairs else {}


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


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
