"""Evaluations that are asked for by name: all scores of masks, few-shot against zero-shot, unknown classes among known ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.models.artifact import Ready
from sightline.models.clip import Clip
from sightline.models.lseg import Lseg
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import Evaluation, embed_rows, single_labels
from sightline.pipelines.evaluate.few_shot import SEEDS, SHOTS, Point, as_metrics, curve, hits
from sightline.pipelines.evaluate.open_set import open_set
from sightline.pipelines.evaluate.segmentation import metrics_of, options_for, score_masks, trained_labels, with_masks
from sightline.pipelines.feed.masks import MaskClasses, check_names, of_fold

TRAIN, VAL, TEST = "train", "val", "test"
Show = Callable[[str, int, int], None]


def quiet(what: str, done: int, total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class FewShot:
    """An evaluation, and what its figures show.

    Attributes:
        points: probes on a few rows a class.
        everything_N, zero_shot_N: which of the same N test rows the probe on all training rows gets right, and zero-shot.
    """

    evaluation: Evaluation
    points: list[Point]
    everything_N: NDArray[np.bool_]
    zero_shot_N: NDArray[np.bool_]

    @property
    def everything(self) -> float:
        return float(self.everything_N.mean())

    @property
    def zero_shot(self) -> float:
        return float(self.zero_shot_N.mean())


def evaluate_segmentation(
    model: Ready,
    corpus: Corpus,
    split: str | None = None,
    held_out: Sequence[str] = (),
    fold: str = "",
    options: Sequence[str] = (),
    progress: Show = quiet,
) -> Evaluation:
    """All scores of masks, on all rows that have one.

    Args:
        split: which rows; None is `test`, else `val`, where the corpus has such a split, otherwise all rows.
        held_out, fold: the classes that count as held out, by name or as in `of_fold`; none: those that training did not have.
        options: how scores become masks, as `key=value` of `SegmentOptions`.

    Raises:
        ValueError: no row has a mask, the model does not segment, or there are no such classes or options.
    """
    model, split = dual_encoder(model), evaluated(corpus, split)
    rows = with_masks(corpus, corpus.select(split))
    if not rows:
        raise ValueError(f"no row of {corpus.location} in split {split!r} has a mask; ingest a source with masks, or give --split")
    names = MaskClasses.of(corpus).names
    trained = model.classes if isinstance(model.towers, Lseg) else trained_labels(corpus)
    away = chosen(names, held_out, fold) or set(names) - set(trained)
    scores = metrics_of(score_masks(model, corpus, rows, progress, options_for(model, options)), away)
    return Evaluation(model.name, model.revision, corpus.root, split, scores)


def evaluate_few_shot(
    model: Ready,
    corpus: Corpus,
    split: str | None = None,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    progress: Show = quiet,
    at_most: int | None = None,
) -> FewShot:
    """Linear probes on n training rows a class and on all of them, and zero-shot, on the same rows with one label each.

    Args:
        at_most: so many rows of each split, evenly over it.

    Raises:
        ValueError: the model has no embeddings, the corpus no training split, or too few rows have one label.
    """
    model, split = dual_encoder(model), evaluated(corpus, split)
    if TRAIN not in corpus.splits or split in (None, TRAIN):  # all rows are the training rows, too
        raise ValueError(
            f"a probe is fitted to the split 'train' and scored on another; {corpus.location} has {corpus.splits or 'none'}"
        )
    (train_ND, train_N, _), (test_ND, test_N, names) = (features(model, corpus, part, progress, at_most) for part in (TRAIN, split))
    there = np.isin(test_N, train_N)  # nobody can be fitted to a class without examples
    if not there.any():
        raise ValueError(f"no class of the split {split!r} has an example in {TRAIN!r}, so no probe knows it")
    test_ND, test_N = test_ND[there], test_N[there]
    points = curve(train_ND, train_N, test_ND, test_N, shots, seeds)
    everything_N = hits(train_ND, train_N, test_ND, test_N)
    fitted = np.unique(train_N)
    weights_LD = model.classifier([names[number] for number in fitted]).cpu().numpy()
    zero_shot_N = fitted[(test_ND @ weights_LD.T).argmax(1)] == test_N
    metrics: dict[str, float] = {"classes": len(fitted), "train_rows": len(train_N), "test_rows": len(test_N)}
    metrics |= as_metrics(points, float(everything_N.mean()), float(zero_shot_N.mean()))
    return FewShot(Evaluation(model.name, model.revision, corpus.root, split, metrics), points, everything_N, zero_shot_N)


def evaluate_open_set(
    model: Ready,
    corpus: Corpus,
    split: str | None = None,
    held_out: Sequence[str] = (),
    fold: str = "",
    progress: Show = quiet,
) -> Evaluation:
    """How well unknown classes are told from known ones by each score; the known ones are what the model is asked for.

    Args:
        held_out, fold: the unknown classes; none: those that the training split did not have.

    Raises:
        ValueError: the model has no embeddings, or there are no images of both kinds.
    """
    model, split = dual_encoder(model), evaluated(corpus, split)
    image_ND, target_N, names = features(model, corpus, split, progress)
    away = chosen(names, held_out, fold) or set(names) - set(trained_labels(corpus))

    def logits(known: list[str]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = model.logit_scale * (image_ND @ model.classifier(known).cpu().numpy().T)
        return found

    return Evaluation(model.name, model.revision, corpus.root, split, open_set(logits, names, target_N, away))


def features(
    model: Clip, corpus: Corpus, split: str | None, progress: Show, at_most: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], list[str]]:
    """Unit embeddings [N, D] of the rows of a split that have exactly one label, their classes [N], and all classes' names.

    Raises:
        ValueError: there are none.
    """
    rows = corpus.select(split)
    rows = rows[:: -(-len(rows) // at_most)] if at_most and len(rows) else rows
    single, names, target_N = single_labels(corpus, rows)
    if not single:
        raise ValueError(f"no row of {corpus.location} in split {split!r} has exactly one label; ingest a source with labels")
    return embed_rows(model, corpus, rows[single], progress).numpy(), target_N.numpy(), names


def dual_encoder(model: Ready) -> Clip:
    """The model, if it embeds both images and names.

    Raises:
        ValueError: it does not.
    """
    if isinstance(model, Clip):
        return model
    raise ValueError(f"{model.name} has no embeddings of labels, which this needs; take a dual encoder's artifact")


def evaluated(corpus: Corpus, split: str | None) -> str | None:
    """The split that was asked for, or `test`, else `val`, where there is one; None: all rows."""
    return split or next((name for name in (TEST, VAL) if name in corpus.splits), None)


def chosen(names: Sequence[str], held_out: Sequence[str], fold: str) -> set[str]:
    """The classes that count as held out, by name or by fold.

    Raises:
        ValueError: both are given, or there are no such classes.
    """
    if held_out and fold:
        raise ValueError("classes are held out by name or by fold; give one of the two")
    check_names(held_out, names)
    return set(held_out or (of_fold(fold, names) if fold else ()))
