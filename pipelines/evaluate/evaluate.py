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
from sightline.models.predictive import TrainedPredictor
from sightline.models.zeroshot import BACKGROUND
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.classify import classify
from sightline.pipelines.evaluate.images import BATCH, rows_through
from sightline.pipelines.evaluate.metrics import recall_at_k, topk_accuracy
from sightline.pipelines.evaluate.segmentation import score_masks, trained_labels, with_masks

T = TypeVar("T")
TEST = "test"
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
    if any(corpus.captions(int(row)) for row in rows[:RETRIEVAL_ROWS]):
        metrics |= retrieval(model, corpus, rows[:RETRIEVAL_ROWS], image_ND[:RETRIEVAL_ROWS])
    metrics |= foreground_iou(model, corpus, rows, progress)
    return Evaluation(model.name, model.revision, corpus.root, split, metrics)


def embed_rows(model: Clip, corpus: Corpus, rows: NDArray[np.int64], progress: Callable[[str, int, int], None]) -> Tensor:
    """Unit image embeddings [N, D] of corpus rows, through the same preprocessing as in serving."""
    return rows_through(model.embed_images, model.preprocess, corpus, rows, progress)


def zero_shot(logits: Callable[[list[int], list[str]], Tensor], corpus: Corpus, rows: NDArray[np.int64]) -> dict[str, float]:
    """Top-1 and top-5 among all class names, on classes seen in training and on held-out ones.

    Args:
        logits: how well names fit images, [n, L]; called with places among the rows and with all names.
    """
    single, names, target_N = single_labels(corpus, rows)
    if not single or len(names) < 2:
        return {}
    logits_NL = logits(single, names)
    trained_on = trained_labels(corpus)
    seen_N = torch.tensor([names[int(target)] in trained_on for target in target_N])
    scores: dict[str, float] = {"zero_shot_classes": len(names)}
    for name, which_N in (("", torch.ones_like(seen_N)), ("_seen", seen_N), ("_held_out", ~seen_N)):
        if which_N.any() and (name == "" or not seen_N.all()):
            scores[f"top1{name}"] = topk_accuracy(logits_NL[which_N], target_N[which_N], 1)
            scores[f"top5{name}"] = topk_accuracy(logits_NL[which_N], target_N[which_N], 5)
            scores[f"top1{name}_rows"] = int(which_N.sum())
    return scores


def single_labels(corpus: Corpus, rows: NDArray[np.int64]) -> tuple[list[int], list[str], Tensor]:
    """Places among the rows of those with exactly one label, all class names but the background, and each one's class."""
    prompts = {number: name for number, name in enumerate(corpus.classes) if name and name != BACKGROUND}
    labels = corpus.sidecar(["labels"])["labels"].to_pylist()
    single = [i for i, row in enumerate(rows) if len(set(labels[row])) == 1 and labels[row][0] in prompts]
    column = {number: i for i, number in enumerate(prompts)}
    return single, list(prompts.values()), torch.tensor([column[labels[rows[i]][0]] for i in single], dtype=torch.long)


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


def foreground_iou(
    model: Clip, corpus: Corpus, rows: NDArray[np.int64], progress: Callable[[str, int, int], None]
) -> dict[str, float]:
    """Foreground IoU given the labels in the image, on a sample of the rows that have masks."""
    chosen = with_masks(corpus, rows, SEGMENTED_ROWS)
    if not chosen:
        return {}
    given = score_masks(model, corpus, chosen, progress, among_all=False).given
    if not given.counts_KK.any():
        return {}
    return {"foreground_iou": given.summed_iou(range(len(given.counts_KK) - 1)), "segmented_images": len(chosen)}


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]
