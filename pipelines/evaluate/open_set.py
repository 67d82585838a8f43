"""Does a model know what it does not know? It is asked for some of the classes, and shown images of others too.

A score (`models/unknown.py`) separates the two kinds: AUROC is the chance that a known image scores above an unknown one, FPR@95
the share of unknown images that pass a threshold which 95 % of the known ones pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from sightline.models.unknown import RULES, fit, threshold_for
from sightline.pipelines.evaluate.metrics import topk_accuracy


def open_set(
    logits: Callable[[list[str]], NDArray[np.float32]], names: list[str], target_N: NDArray[np.int64], held_out: Collection[str]
) -> dict[str, float]:
    """AUROC and FPR@95 of each score, and the accuracy on the known images.

    Args:
        logits: how well names fit the images, [N, L].
        names: all classes; target_N: each image's class among them.
        held_out: the classes that are not asked for.

    Raises:
        ValueError: there are fewer than two known classes, or no images of either kind.
    """
    known = [name for name in names if name not in held_out]
    if len(known) < 2:
        raise ValueError(f"{len(known)} classes are left to ask for; hold out fewer")
    place_of = torch.tensor([known.index(name) if name in known else -1 for name in names])[torch.from_numpy(target_N)]
    is_known_N = place_of >= 0
    if is_known_N.all() or not is_known_N.any():
        raise ValueError("images of known and of held-out classes are needed; hold out classes that the split has, not all of them")
    logits_NL = torch.from_numpy(logits(known))
    found: dict[str, float] = {
        "known_classes": len(known),
        "known_rows": int(is_known_N.sum()),
        "unknown_rows": int((~is_known_N).sum()),
        "top1_known": topk_accuracy(logits_NL[is_known_N], place_of[is_known_N], 1),
    }
    for score in RULES:
        known_N = fit(logits_NL, score)
        found[f"auroc by {score}"] = float(roc_auc_score(is_known_N.numpy(), known_N.double().numpy()))
        passed_N = known_N[~is_known_N] >= threshold_for(known_N[is_known_N])
        found[f"fpr@95 by {score}"] = float(passed_N.double().mean())
    return found
