"""Tensors become what the answers hold: predictions, masks, vectors, and what a model says of itself. Pure functions."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch import Tensor

from sightline.models.unknown import best_of_others, fit
from sightline.serve import answers, masks
from sightline.serve.answers import Classified, Failed, Known, Prediction, Segmented
from sightline.serve.engine import Enlarged
from sightline.serve.problems import ProblemError
from sightline.serve.schemas import ClassifyRequest, EmbeddingsRequest
from sightline.serve.served import Served

PACKERS = 4  # score maps that are made at once, each of an image's size


def classified(request: ClassifyRequest, labels: Sequence[str], logits_L: Tensor, logits_O: Tensor | None) -> Classified:
    """Predictions, the most probable first, and whether any label fits, where that was asked.

    Args:
        logits_O: of other things that may be there; they are the threshold where the request gives none.

    Raises:
        ProblemError: the rule cannot decide that (422).
    """
    rows = zip(labels, logits_L.softmax(-1).tolist(), logits_L.tolist(), strict=True)
    predictions = [Prediction(label=label, score=score, logit=logit) for label, score, logit in rows]
    predictions.sort(key=lambda prediction: -prediction.logit)
    known = decided(request, logits_L, logits_O) if request.unknown or request.threshold is not None else None
    unknown = None if known is None else known.score < known.threshold
    return Classified(predictions=predictions[: request.top_k], unknown=unknown, known=known)


def decided(request: ClassifyRequest, logits_L: Tensor, logits_O: Tensor | None) -> Known:
    """How well the best label fits, and how well it ought to.

    Raises:
        ProblemError: the rule cannot decide that (422).
    """
    threshold = request.threshold
    if threshold is None:
        assert logits_O is not None
        threshold = float(best_of_others(logits_O))
    try:
        return Known(rule=request.rule, score=float(fit(logits_L, request.rule)), threshold=threshold)
    except ValueError as error:
        raise ProblemError(422, "invalid-field", f"rule: {error}") from error


def segmented(found: Enlarged, labels: Sequence[str], form: str) -> Segmented:
    """A segmentation as it is asked for."""
    label_map_HW = found.label_map_HW
    height, width = label_map_HW.shape
    counts = masks.pixel_counts(label_map_HW, len(labels))
    areas = [
        answers.LabelArea(label=label, colour=masks.colour(i), pixels=count, fraction=count / (height * width))
        for i, (label, count) in enumerate(zip(labels, counts, strict=True))
    ]
    if form == "rle":
        for i, area in enumerate(areas):
            area.rle = answers.Rle(size=[height, width], counts=masks.coco_counts(masks.run_lengths(label_map_HW == i + 1)))
    if form == "scores":
        with ThreadPoolExecutor(PACKERS) as threads:  # a file for each label, and zlib lets go of Python's lock
            pack = partial(masks.encode_scores, at=found.at)
            for area, grey in zip(areas, threads.map(pack, found.small.scores_LHW), strict=True):
                area.scores = base64.b64encode(grey).decode()
    mask = base64.b64encode(masks.encode(label_map_HW, len(labels))).decode() if form == "png" else None
    return Segmented(width=width, height=height, labels=areas, mask=mask)


def embedding(index: int, vector: Tensor | Failed, request: EmbeddingsRequest) -> answers.Embedding:
    """Raises: ProblemError: other dimensions are asked for than the model has (422)."""
    if isinstance(vector, Failed):
        return answers.Embedding(index=index, embedding=None, error=vector.error)
    if request.dimensions not in (None, len(vector)):
        raise ProblemError(422, "invalid-field", f"dimensions: this model's embeddings have {len(vector)}; leave the field out")
    if request.encoding_format == "base64":
        return answers.Embedding(index=index, embedding=base64.b64encode(vector.numpy().astype(np.dtype("<f4")).tobytes()).decode())
    return answers.Embedding(index=index, embedding=vector.tolist())


def described(served: Served, share: float) -> answers.Model:
    """An entry of /v1/models."""
    model, tower = served.model, served.engine.tower
    return answers.Model(
        **served.who,
        id=model.name,
        share=share,
        dimension=served.engine.dimension,
        image_size=model.preprocess.size,
        precision=tower.precision,
        runtime=tower.runtime,
        cosine_difference=tower.difference,
        templates=list(model.templates),
        classes=served.engine.classes,
        provenance=None if served.provenance is None else dict(served.provenance),
    )
