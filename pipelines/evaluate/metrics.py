"""Scores as plain functions of embeddings and masks.

Legend: N images, L labels, M captions, D embedding, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.zeroshot import IGNORE


def topk_accuracy(logits_NL: Tensor, target_N: Tensor, k: int) -> float:
    """Share of rows whose target is among the k largest logits (k is cut to the number of labels)."""
    best_Nk = logits_NL.topk(min(k, logits_NL.shape[1]), dim=1).indices
    return float((best_Nk == target_N[:, None]).any(1).double().mean())


def recall_at_k(similarity_NM: Tensor, image_of_M: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Image↔text recall@k over a set of N images and their M captions (Karpathy and Fei-Fei 2015).

    Image→text counts an image if any of its captions is among its k nearest captions; text→image counts a caption
    if its image is among its k nearest images.

    Args:
        similarity_NM: cosine of every image with every caption.
        image_of_M: the row of each caption's image.
    """
    owner_M = torch.as_tensor(image_of_M)
    own_NM = owner_M[None, :] == torch.arange(similarity_NM.shape[0])[:, None]
    scores: dict[str, float] = {}
    for k in ks:
        captions_Nk = similarity_NM.topk(min(k, similarity_NM.shape[1]), dim=1).indices
        images_kM = similarity_NM.topk(min(k, similarity_NM.shape[0]), dim=0).indices
        scores[f"image_to_text_recall@{k}"] = float(own_NM.gather(1, captions_Nk).any(1).double().mean())
        scores[f"text_to_image_recall@{k}"] = float((images_kM == owner_M[None, :]).any(0).double().mean())
    return scores


class Confusion:
    """Pixels by their true and their predicted class, over a whole set: the one count that all scores of masks come from.

    Attributes:
        counts_KK: int64, [truth, prediction].
        intersections, unions, iou: of each class [K].
    """

    def __init__(self, classes: int) -> None:
        self.counts_KK: NDArray[np.int64] = np.zeros((classes, classes), np.int64)

    def add(self, truth_HW: NDArray[np.integer[Any]], predicted_HW: NDArray[np.integer[Any]], ignore: int = IGNORE) -> None:
        """Count an image's pixels; those that the truth ignores do not count. Both hold class numbers below K."""
        counted_HW = truth_HW != ignore
        pairs = truth_HW[counted_HW].astype(np.int64) * len(self.counts_KK) + predicted_HW[counted_HW]
        self.counts_KK += np.bincount(pairs, minlength=self.counts_KK.size).reshape(self.counts_KK.shape)

    @property
    def intersections(self) -> NDArray[np.int64]:
        return self.counts_KK.diagonal()

    @property
    def unions(self) -> NDArray[np.int64]:
        return self.counts_KK.sum(0) + self.counts_KK.sum(1) - self.intersections

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union of each class; not a number where it is neither in the truth nor predicted."""
        with np.errstate(invalid="ignore"):
            return self.intersections / self.unions

    @property
    def pixel_accuracy(self) -> float:
        return float(self.intersections.sum() / self.counts_KK.sum())

    def mean_iou(self, classes: Sequence[int]) -> float:
        """The mean over those of the classes that are in the truth or were predicted."""
        return float(np.nanmean(self.iou[list(classes)]))

    def summed_iou(self, classes: Sequence[int]) -> float:
        """Intersections over unions, each summed over the classes: large things count more than small ones."""
        return float(self.intersections[list(classes)].sum() / self.unions[list(classes)].sum())


def harmonic_mean(first: float, second: float) -> float:
    return 2 * first * second / (first + second) if first + second else 0.0
