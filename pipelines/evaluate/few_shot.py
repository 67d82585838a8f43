"""How many examples a class are worth as much as its name: a linear probe on n of them, beside zero-shot (Radford et al. 2021).

Features are computed once. Each n is drawn several times, by seed; the interval is Student's, of the mean over the draws. The probe
is scikit-learn's logistic regression on unit vectors, with one C for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

SHOTS = (1, 2, 4, 8, 16)
SEEDS = 5
INVERSE_REGULARISATION = 100.0
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """Accuracies at n examples a class; `half_width` is that of the interval around their mean."""

    shots: int
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def half_width(self) -> float:
        draws = len(self.accuracies)
        if draws < 2:
            return float("nan")
        return float(student.ppf((1 + CONFIDENCE) / 2, draws - 1) * np.std(self.accuracies, ddof=1) / sqrt(draws))


def probe(
    train_ND: NDArray[np.float32], train_N: NDArray[np.int64], test_ND: NDArray[np.float32], test_N: NDArray[np.int64]
) -> float:
    """Accuracy on the test features of a linear classifier that was fitted to the training features.

    Raises:
        ValueError: the training set has fewer than two classes.
    """
    return float(hits(train_ND, train_N, test_ND, test_N).mean())


def hits(
    train_ND: NDArray[np.float32], train_N: NDArray[np.int64], test_ND: NDArray[np.float32], test_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which test rows that classifier gets right [N].

    Raises:
        ValueError: the training set has fewer than two classes.
    """
    right: NDArray[np.bool_] = fitted(train_ND, train_N).predict(test_ND) == test_N
    return right


def fitted(train_ND: NDArray[np.float32], train_N: NDArray[np.int64]) -> LogisticRegression:
    """A linear classifier of features.

    Raises:
        ValueError: there are fewer than two classes.
    """
    if len(np.unique(train_N)) < 2:
        raise ValueError("a linear probe needs training rows of at least two classes")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # of one or two examples a class that is so
        return LogisticRegression(C=INVERSE_REGULARISATION, max_iter=2_000).fit(train_ND, train_N)


def curve(
    train_ND: NDArray[np.float32],
    train_N: NDArray[np.int64],
    test_ND: NDArray[np.float32],
    test_N: NDArray[np.int64],
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
) -> list[Point]:
    """The probe at each number of examples a class that all classes have; the draws of one seed contain each other.

    Raises:
        ValueError: the shots make no sense, or a class has not even the fewest.
    """
    if seeds < 1 or not shots or min(shots) < 1:
        raise ValueError(f"{seeds} seeds and {list(shots)} shots; give 1 or more of each")
    fewest = int(np.bincount(train_N)[np.unique(train_N)].min())
    possible = [n for n in sorted(set(shots)) if n <= fewest]
    if not possible:
        raise ValueError(f"a class has only {fewest} training rows, fewer than {min(shots)} shots; give fewer")
    orders = [np.random.default_rng(seed).permutation(len(train_N)) for seed in range(seeds)]
    points = []
    for n in possible:
        draws = [np.concatenate([order[train_N[order] == label][:n] for label in np.unique(train_N)]) for order in orders]
        points.append(Point(n, tuple(probe(train_ND[draw], train_N[draw], test_ND, test_N) for draw in draws)))
    return points


def as_metrics(points: Sequence[Point], everything: float, zero_shot: float | None) -> dict[str, float]:
    """By name, for the table."""
    found = {} if zero_shot is None else {"zero_shot": zero_shot}
    for point in points:
        found[f"{point.shots}_shot"] = point.mean
        if len(point.accuracies) > 1:
            found[f"{point.shots}_shot ±"] = point.half_width
    return found | {"linear_probe": everything}
