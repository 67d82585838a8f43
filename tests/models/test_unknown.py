"""The three rules against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch

from sightline.models.unknown import RULES, Rule, best_of_others, fit

LOGITS = [[1.0, 3.0, -2.0], [0.5, 0.5, 0.5]]


def by_hand(logits: list[float], rule: str) -> float:
    total = sum(math.exp(logit) for logit in logits)
    return {"logit": max(logits), "probability": math.exp(max(logits)) / total, "energy": math.log(total)}[rule]


@pytest.mark.parametrize("rule", RULES)
def test_a_score_is_its_formula(rule: Rule) -> None:
    got = fit(torch.tensor(LOGITS), rule)
    torch.testing.assert_close(got, torch.tensor([by_hand(logits, rule) for logits in LOGITS]))


def test_large_logits_do_not_overflow() -> None:
    assert fit(torch.tensor([1e4, 0.0]), "energy") == pytest.approx(1e4)


def test_what_cannot_be_decided_is_refused() -> None:
    with pytest.raises(ValueError, match="two labels or more"):
        fit(torch.tensor([3.0]), "probability")
    with pytest.raises(ValueError, match="give at least one"):
        fit(torch.zeros(2, 0), "logit")
    with pytest.raises(ValueError, match="choose logit, probability, energy"):
        fit(torch.zeros(2), "luck")  # type: ignore[arg-type]


def test_the_threshold_is_the_best_of_the_others() -> None:
    assert best_of_others(torch.tensor(LOGITS)).tolist() == [3.0, 0.5]
