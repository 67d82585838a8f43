"""Few-shot curves and unknown classes against plain counts."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.cli.curve import draw_curve
from sightline.models.load import load_model
from sightline.models.unknown import RULES, fit, threshold_for
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.few_shot import Point, curve, probe
from sightline.pipelines.evaluate.open_set import open_set
from sightline.pipelines.evaluate.protocols import evaluate_few_shot, evaluate_open_set

RANDOM = np.random.default_rng(0)


def clusters(each: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around three directions."""
    labels = np.repeat(np.arange(3), each)
    found = np.eye(3, 8)[labels] + RANDOM.normal(0, spread, (len(labels), 8))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), labels


def test_more_examples_make_a_better_probe() -> None:
    train, test = clusters(40, 0.5), clusters(100, 0.5)
    points = curve(*train, *test, shots=(1, 4, 16, 64), seeds=4)
    assert [point.shots for point in points] == [1, 4, 16]  # no class has 64
    assert points[0].mean < points[1].mean < points[2].mean
    assert [len(point.accuracies) for point in points] == [4, 4, 4]
    again = curve(*train, *test, shots=(4,), seeds=4)
    assert again[0].accuracies == points[1].accuracies
    assert probe(*train, *test) > points[0].mean


def test_the_interval_is_students() -> None:
    point = Point(1, (0.5, 0.6, 0.7))
    assert point.mean == pytest.approx(0.6)
    assert point.half_width == pytest.approx(4.302653 * 0.1 / sqrt(3), rel=1e-5)  # t of 2 degrees of freedom, 97.5 %
    assert np.isnan(Point(1, (0.5,)).half_width)


def test_scores_of_the_unknown_are_their_formulas() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.1, 0.2, 0.0]])
    e = np.exp(logits.numpy())
    want = {"logit": [2.0, 0.2], "probability": (e / e.sum(1, keepdims=True)).max(1), "energy": np.log(e.sum(1))}
    for score in RULES:
        np.testing.assert_allclose(fit(logits, score).numpy(), want[score], rtol=1e-6)
    with pytest.raises(ValueError, match="choose logit, probability, energy"):
        fit(logits, "entropy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="single label is always 1"):
        fit(logits[:, :1], "probability")


def test_a_threshold_keeps_the_share_that_it_should() -> None:
    known = torch.randn(99)
    for share in (0.5, 0.95, 1.0):
        threshold = threshold_for(known, share)
        assert (known >= threshold).float().mean() >= share > (known > threshold).float().mean()
    with pytest.raises(ValueError, match="cannot be found"):
        threshold_for(torch.empty(0))


def test_auroc_and_fpr_are_plain_counts() -> None:
    names, held_out = ["a", "b", "c", "d"], {"b", "d"}
    target = RANDOM.integers(0, 4, 60)
    logits = RANDOM.normal(size=(60, 2)).astype(np.float32) + 2 * (target[:, None] == np.array([0, 2]))
    asked = []

    def scores(known: list[str]) -> np.ndarray:
        asked.append(known)
        return logits.astype(np.float32)

    found = open_set(scores, names, target, held_out)
    assert asked == [["a", "c"]] and found["known_rows"] + found["unknown_rows"] == 60
    known, unknown = logits.max(1)[np.isin(target, [0, 2])], logits.max(1)[np.isin(target, [1, 3])]
    wins = np.mean([(k > u) + 0.5 * (k == u) for k in known for u in unknown])
    assert found["auroc by logit"] == pytest.approx(wins)
    passing = max(threshold for threshold in known if np.mean(known >= threshold) >= 0.95)
    assert found["fpr@95 by logit"] == pytest.approx(np.mean(unknown >= passing))
    right = [logits[i].argmax() == [0, 2].index(target[i]) for i in range(60) if target[i] in (0, 2)]
    assert found["top1_known"] == pytest.approx(np.mean(right))
    with pytest.raises(ValueError, match="hold out fewer"):
        open_set(scores, names, target, {"a", "b", "c"})
    with pytest.raises(ValueError, match="images of known and of held-out classes"):
        open_set(scores, names, target, set())


def test_the_digits_by_a_few_examples_and_without_some(digits: Corpus, artifact: Path, tmp_path: Path) -> None:
    model = load_model(str(artifact))
    found = evaluate_few_shot(model, digits, shots=(1, 2), seeds=2)
    metrics = found.evaluation.metrics
    assert 40 < metrics["classes"] <= 48 and {"zero_shot", "1_shot", "linear_probe"} <= metrics.keys()
    assert 0 <= metrics["1_shot"] <= 1
    draw_curve("digits & more", found.points, found.everything, found.zero_shot, tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    assert drawn.count("<circle") == len(found.points) and "zero-shot" in drawn and "digits &amp; more" in drawn

    unknown = evaluate_open_set(model, digits).metrics
    assert unknown["known_classes"] == 48 and unknown["unknown_rows"] == 18 and 0 <= unknown["auroc by energy"] <= 1
    assert evaluate_open_set(model, digits, fold="1/2").metrics["known_classes"] == 30
    with pytest.raises(ValueError, match="fitted to the split 'train' and scored on another"):
        evaluate_few_shot(model, digits, "train")
    with pytest.raises(ValueError, match="give fewer"):
        evaluate_few_shot(model, digits, shots=(1000,))
