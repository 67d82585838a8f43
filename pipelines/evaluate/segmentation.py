"""Scores of masks: one confusion matrix over the whole set, at each image's own size.

Two questions are asked of each image: where are the labels that are in it (`given`), and which of all labels is where (`among
all`). Classes are *seen* or *held out*: a model is asked for both at once (generalised zero-shot), and the harmonic mean of the
two mean IoUs says how well it knows what it was never shown (Xian et al. 2018).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from sightline.models.clip import Clip
from sightline.models.codec import decode_rgb
from sightline.models.remembering import RememberingClip
from sightline.models.segment import SegmentOptions, segment
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.metrics import Confusion, harmonic_mean
from sightline.pipelines.feed.masks import MaskClasses

TRAIN = "train"
Show = Callable[[str, int, int], None]


@dataclass(frozen=True)
class MaskScores:
    """Confusion matrices over a set; the last of K + 1 classes is the background.

    Attributes:
        given: each image asked for the labels in it.
        among_all: each image asked for all labels; None where that was not asked.
        images: how many there were.
    """

    classes: MaskClasses
    given: Confusion
    among_all: Confusion | None
    images: int


def score_masks(
    model: Clip,
    corpus: Corpus,
    rows: Sequence[int],
    progress: Show,
    options: SegmentOptions | None = None,
    *,
    among_all: bool = True,
) -> MaskScores:
    """Segment the rows and count; where the corpus has no background, each pixel gets one of the labels.

    Raises:
        ValueError: the corpus names no classes, or the model cannot be read densely.
    """
    classes, model = MaskClasses.of(corpus), RememberingClip.of(model)
    options = options or SegmentOptions.for_model(model)
    if not classes.background:
        options = replace(options, background="none")
    every = list(range(len(classes.names)))
    found = MaskScores(classes, Confusion(len(every) + 1), Confusion(len(every) + 1) if among_all else None, len(rows))
    for done, row in enumerate(rows):
        truth_HW = classes.truth(corpus, row)
        assert truth_HW is not None
        rgb_HWC = decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels)
        present = [number for number in np.unique(truth_HW).tolist() if number < len(every)]
        for confusion, numbers in ((found.given, present), (found.among_all, every)):
            if confusion is not None and numbers:
                labels = [classes.names[number] for number in numbers]
                asked = replace(options, present=confusion is found.given)
                lookup = np.array([len(every), *numbers])
                confusion.add(truth_HW, lookup[segment(model, rgb_HWC, labels, asked).label_map_HW])
        progress("segment", done + 1, len(rows))
    return found


def options_for(model: Clip, assignments: Sequence[str]) -> SegmentOptions:
    """The model's own options with `key=value` applied; a value is JSON, or else the text itself.

    Raises:
        ValueError: an assignment without `=`, an unknown key, or a value of the wrong type.
    """
    chosen = asdict(SegmentOptions.for_model(model))
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or key not in chosen:
            raise ValueError(f"{assignment!r} is no option of masks; give key=value, with {', '.join(chosen)}")
        try:
            chosen[key] = json.loads(text)
        except json.JSONDecodeError:
            chosen[key] = text
    try:
        return TypeAdapter(SegmentOptions).validate_python(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][0]}={first['input']!r}: {first['msg']}") from error


def with_masks(corpus: Corpus, rows: NDArray[np.int64], most: int | None = None) -> list[int]:
    """Those of the rows that have a mask; of more than `most` evenly spaced ones, so that a cut set is a sample of the whole."""
    chosen = [int(row) for row in rows if corpus.mask(int(row)) is not None]
    return chosen if most is None else chosen[:: max(1, len(chosen) // most)][:most]


def trained_labels(corpus: Corpus) -> Collection[str]:
    """The names of the labels that the training split's rows have; of all classes, where nothing is said of that."""
    every = {name for name in corpus.class_names.values() if name}
    if TRAIN not in corpus.splits:
        return every
    labels = corpus.sidecar(["labels"])["labels"].take(pa.array(corpus.select(TRAIN))).combine_chunks().flatten()
    return {corpus.class_names.get(number, "") for number in labels.unique().to_pylist()} or every


def metrics_of(scores: MaskScores, held_out: Collection[str]) -> dict[str, float]:
    """All scores by name.

    Args:
        held_out: the classes that count as such; none: no such scores.
    """
    names = scores.classes.names
    foreground = list(range(len(names)))
    counted = [*foreground, len(names)] if scores.classes.background else foreground
    parts = {
        "seen": [i for i in foreground if names[i] not in held_out],
        "held_out": [i for i in foreground if names[i] in held_out],
    }
    metrics: dict[str, float] = {"segmented_images": scores.images, "segmentation_classes": len(counted)}
    for confusion, suffix in ((scores.among_all, ""), (scores.given, "_given_labels")):
        if confusion is None or not confusion.counts_KK.any():
            continue
        metrics[f"mean_iou{suffix}"] = confusion.mean_iou(counted)
        metrics[f"pixel_accuracy{suffix}"] = confusion.pixel_accuracy
        summed = f"foreground_iou{suffix or '_among_all'}"
        metrics[summed] = confusion.summed_iou(foreground)
        if all(those and confusion.unions[those].any() for those in parts.values()):
            for part, those in parts.items():
                metrics[f"{summed}_{part}"] = confusion.summed_iou(those)
                metrics[f"mean_iou{suffix}_{part}"] = confusion.mean_iou(those)
            metrics[f"mean_iou{suffix}_harmonic"] = harmonic_mean(
                *(metrics[f"mean_iou{suffix}_{part}"] for part in ("seen", "held_out"))
            )
    if scores.among_all is not None:
        metrics |= {f"iou of {names[i]}": float(scores.among_all.iou[i]) for i in foreground if scores.among_all.unions[i]}
    return metrics
