"""Whether an image shows any of the labels at all: a score of how well the best of them fits, by one of three rules.

    logit         max_l z_l            maximum logit (Hendrycks et al. 2022, "Scaling Out-of-Distribution Detection")
    probability   max_l softmax(z)_l   maximum probability (Hendrycks and Gimpel 2017); 1 where there is one label, so it needs two
    energy        log Σ_l exp z_l      minus the free energy at temperature 1 (Liu et al. 2020)

An image is unknown where its score is below a threshold. What a good threshold is depends on model and labels: `threshold_for`
finds it on known images. Where there are none, `best_of_others` does for the logit: an image is unknown where one of some other
prompts fits better than every label.

Legend: B images, L labels, O other prompts; any axes may stand before the labels.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Rule = Literal["logit", "probability", "energy"]
RULES: tuple[Rule, ...] = get_args(Rule)


def fit(logits_L: Tensor, rule: Rule) -> Tensor:
    """How well the best label fits, [...] of logits [..., L]; higher is more certainly known.

    Raises:
        ValueError: there is no such rule, no label, or one label and the rule compares labels.
    """
    labels = logits_L.shape[-1]
    if labels == 0:
        raise ValueError("there are no labels; give at least one")
    match rule:
        case "logit":
            return logits_L.amax(-1)
        case "probability":
            if labels == 1:
                raise ValueError("the probability of a single label is always 1; give two labels or more, or the rule logit")
            return logits_L.softmax(-1).amax(-1)
        case "energy":
            return torch.logsumexp(logits_L, -1)
    raise ValueError(f"there is no rule {rule!r}; choose {', '.join(RULES)}")


def threshold_for(fit_B: Tensor, share: float = 0.95) -> float:
    """The largest threshold that so many of some known images still reach (`fit >= threshold`).

    Raises:
        ValueError: there are no images, or the share is none.
    """
    if not len(fit_B) or not 0 < share <= 1:
        raise ValueError(f"a threshold for a share of {share} of {len(fit_B)} images cannot be found; give images, and 0 to 1")
    kept = -int(-share * len(fit_B) // 1)  # rounded up: at least that share
    return float(fit_B.sort(descending=True).values[kept - 1])


def best_of_others(logits_O: Tensor) -> Tensor:
    """The threshold for the rule `logit` where none is given: the largest logit of other prompts, [...] of [..., O]."""
    return logits_O.amax(-1)
