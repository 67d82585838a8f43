"""Scores as plain functions of embeddings and masks.

Legend: N images, L labels, M captions, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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


def intersection_and_union(
    predicted_HW: NDArray[np.uint8], truth_HW: NDArray[np.uint8], classes: Sequence[int], ignore: int = 255
) -> tuple[int, int]:
    """Pixels in the intersection and in the union, summed over the classes; ignored pixels of the truth do not count."""
    counted = truth_HW != ignore
    intersection = union = 0
    for number in classes:
        predicted, truth = (predicted_HW == number) & counted, truth_HW == number
        intersection += int((predicted & truth).sum())
        union += int((predicted | truth).sum())
    return intersection, union
