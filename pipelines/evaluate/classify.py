"""A classifier's scores on a labelled corpus, matched by the classes' names: the corpus may number them otherwise, or have others.

A row counts if it has exactly one label and the classifier knows that class; how many counted is in the scores.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.models.classifier import TrainedClassifier
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.images import rows_through
from sightline.pipelines.evaluate.metrics import topk_accuracy


def classify(
    model: TrainedClassifier, corpus: Corpus, rows: NDArray[np.int64], progress: Callable[[str, int, int], None]
) -> dict[str, float]:
    """Top-1 and top-5 accuracy among all of the model's classes.

    Raises:
        ValueError: no row has a label that the model knows.
    """
    labels, place = corpus.sidecar(["labels"])["labels"].to_pylist(), {name: i for i, name in enumerate(model.classes)}
    known = {number: place[name] for number, name in corpus.class_names.items() if name in place}
    scored = [int(row) for row in rows if len(set(labels[row] or ())) == 1 and labels[row][0] in known]
    if not scored:
        raise ValueError(
            f"none of {len(rows):,} rows of {corpus.location} has exactly one label that {model.name} knows; its classes are "
            f"{', '.join(model.classes[:10])}, and the corpus' are {', '.join(corpus.class_names.values()) or 'none'}"
        )
    logits_NL = rows_through(model.logits, model.preprocess, corpus, scored, progress)
    target_N = torch.tensor([known[labels[row][0]] for row in scored])
    top1, top5 = (topk_accuracy(logits_NL, target_N, k) for k in (1, 5))
    return {"classes": len(model.classes), "top1": top1, "top5": top5, "top1_rows": len(scored)}
