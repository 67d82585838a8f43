"""How sure a model is that any of the labels fits: small where none does, so that an answer may be `unknown`.

    logit         the largest logit: how near the nearest label is, whatever the others are (Hendrycks et al. 2022)
    probability   the largest softmax probability: how far the nearest is from the others (Hendrycks and Gimpel 2017)
    energy        log Σ exp(logits): how near all labels are together (Liu et al. 2020)

Legend: B images, L labels.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

Score = Literal["logit", "probability", "energy"]
SCORES: tuple[Score, ...] = get_args(Score)


def knownness(logits_BL: Tensor, by: Score) -> Tensor:
    """One number [B] an image; larger where one of the labels fits.

    Raises:
        ValueError: there is no such score, or only one label, whose probability is always 1.
    """
    if by not in SCORES:
        raise ValueError(f"there is no score {by!r} for unknown images; choose {', '.join(SCORES)}")
    if by == "logit":
        return logits_BL.amax(-1)
    if by == "energy":
        return logits_BL.logsumexp(-1)
    if logits_BL.shape[-1] < 2:
        raise ValueError("the probability of a single label is always 1; give two labels or more, or score by logit or energy")
    return logits_BL.softmax(-1).amax(-1)


def threshold_for(known_B: Tensor, share: float = 0.95) -> float:
    """The largest threshold that so many of some known images still reach (`knownness >= threshold`).

    Raises:
        ValueError: there are no images, or the share is none.
    """
    if not len(known_B) or not 0 < share <= 1:
        raise ValueError(f"a threshold for a share of {share} of {len(known_B)} images cannot be found; give images, and 0 to 1")
    kept = -int(-share * len(known_B) // 1)  # rounded up: at least that share
    return float(known_B.sort(descending=True).values[kept - 1])
