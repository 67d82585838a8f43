"""The lens `supervised`: what names alone give a CLIP, beside linear probes on a few labelled rows a class and on all of them.

All probes and zero-shot answer for the same test rows and choose among the same classes. There are two kinds of intervals: those of
zero-shot and of the probe on all rows are over test rows (Wilson 1927), those of n shots over the draws of the rows that a probe
was fitted to (Student's t). The difference of the first two is one of pairs: its interval is that of Agresti and Min (2005), who
add half a row to each of the four cells of the table of who was right, and then take the normal approximation; so it is not empty
where the two never disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from sightline.pipelines.evaluate.few_shot import CONFIDENCE, Point
from sightline.pipelines.evaluate.protocols import FewShot
from sightline.pipelines.lens.figures import COLOURS, panels, save
from sightline.pipelines.lens.report import Seen

SOURCE = "Radford et al. 2021, figures 5 and 6"
INTERVALS = (
    f"{CONFIDENCE:.0%}: zero-shot and linear probe by Wilson, over test rows; n shots by Student's t, over draws of training rows; "
    "the difference by Agresti and Min, over pairs of answers to the same test row"
)


# ---- arithmetic ----


def wilson(right_N: NDArray[np.bool_]) -> tuple[float, float]:
    """The interval of a share of rows."""
    interval = binomtest(int(right_N.sum()), len(right_N)).proportion_ci(CONFIDENCE, "wilson")
    return float(interval.low), float(interval.high)


def paired(first_N: NDArray[np.bool_], second_N: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Of two answers to each row: the first's accuracy minus the second's, and the ends of its interval."""
    rows = len(first_N)
    first_alone, second_alone = int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())
    more, apart = first_alone - second_alone, first_alone + second_alone + 1
    center, half_width = more / (rows + 2), norm.ppf((1 + CONFIDENCE) / 2) * sqrt(apart - more**2 / (rows + 2)) / (rows + 2)
    return more / rows, max(-1.0, float(center - half_width)), min(1.0, float(center + half_width))


def examples_to_match(shots: Sequence[int], means: Sequence[float], zero_shot: float) -> float | None:
    """Examples a class where the curve first reaches zero-shot, on straight lines over log2; None: before its start, or never."""
    if means[0] >= zero_shot:
        return float(shots[0]) if means[0] == zero_shot else None
    for i in range(1, len(shots)):
        if means[i] >= zero_shot:
            share = (zero_shot - means[i - 1]) / (means[i] - means[i - 1])
            return float(2 ** (log2(shots[i - 1]) + share * (log2(shots[i]) - log2(shots[i - 1]))))
    return None


def averaged(curves: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean over corpora, draw by draw, at the shots that all of them have."""
    together = [{point.shots: point.accuracies for point in points} for points in curves]
    common = sorted(set.intersection(*(set(one) for one in together)))
    return [Point(n, tuple(float(np.mean(draw)) for draw in zip(*(one[n] for one in together), strict=True))) for n in common]


def names(locations: Sequence[str]) -> list[str]:
    """The last parts of the corpora's places, as many as tell them apart.

    Raises:
        ValueError: one is named twice.
    """
    parts = [location.rstrip("/").split("/") for location in locations]
    for number, one in enumerate(parts):
        if one in parts[:number]:
            raise ValueError(f"{locations[number]} is named twice; name each corpus once")
    deep = 1
    while len({tuple(one[-deep:]) for one in parts}) < len(parts):
        deep += 1
    return ["/".join(one[-deep:]) for one in parts]


# ---- numbers and figures ----


def look(found: Mapping[str, FewShot], folder: Path) -> Seen:
    """Draw and describe the evaluations of one model, by the corpora's names."""
    average = averaged([one.points for one in found.values()])
    zero_shot, everything = (float(np.mean([getattr(one, what) for one in found.values()])) for what in ("zero_shot", "everything"))
    model = next(iter(found.values())).evaluation.model
    numbers: dict[str, Any] = {
        "model": model,
        "corpora": [facts(name, one) for name, one in found.items()],
        "average": {"zero_shot": zero_shot, "linear_probe": everything, **of_shots(average, zero_shot)},
        "intervals": INTERVALS,
    }
    figures = (
        draw_bars(model, found, folder / "supervised.svg"),
        draw_shots(model, found, average, zero_shot, everything, folder / "supervised-shots.svg"),
    )
    caption = (
        "What a model knows by names alone, beside linear probes on its features; right of zero, names are worth more than all "
        f"labelled rows. Over the corpora, {matched(numbers['average'])} examples a class are worth as much as the names."
    )
    return Seen("supervised", numbers, figures, caption, SOURCE)


def facts(name: str, one: FewShot) -> dict[str, Any]:
    """The numbers of one corpus; shares from 0 to 1, but the difference in percentage points."""
    evaluation = one.evaluation
    difference = dict(
        zip(("mean", "low", "high"), (100 * value for value in paired(one.zero_shot_N, one.everything_N)), strict=True)
    )
    return {
        "corpus": name,
        "corpus_root": evaluation.corpus_root,
        "split": evaluation.split,
        **{what: int(evaluation.metrics[what]) for what in ("classes", "train_rows", "test_rows")},
        "zero_shot": dict(zip(("mean", "low", "high"), (one.zero_shot, *wilson(one.zero_shot_N)), strict=True)),
        "linear_probe": dict(zip(("mean", "low", "high"), (one.everything, *wilson(one.everything_N)), strict=True)),
        "zero_shot_minus_probe_points": difference,
        **of_shots(one.points, one.zero_shot),
    }


def of_shots(points: Sequence[Point], zero_shot: float) -> dict[str, Any]:
    """A curve, and how many examples a class match zero-shot (see `examples_to_match`)."""
    shots, means = [point.shots for point in points], [point.mean for point in points]
    widths = [point.half_width if len(point.accuracies) > 1 else None for point in points]
    return {
        "shots": [{"shots": n, "mean": mean, "half_width": width} for n, mean, width in zip(shots, means, widths, strict=True)],
        "examples_to_match": examples_to_match(shots, means, zero_shot),
        "matched_by_fewest": means[0] >= zero_shot,
    }


def matched(numbers: Mapping[str, Any]) -> str:
    """`of_shots` in words."""
    shots = [one["shots"] for one in numbers["shots"]]
    if numbers["examples_to_match"] is not None:
        return f"{numbers['examples_to_match']:.1f}"
    return f"fewer than {shots[0]}" if numbers["matched_by_fewest"] else f"more than {shots[-1]}"


def draw_bars(model: str, found: Mapping[str, FewShot], path: Path) -> Path:
    """Left: a group of bars for each corpus. Right: zero-shot minus the probe on all rows, largest on top."""
    figure, (bars, apart) = panels(2, columns=2, side=3.6 + 0.4 * len(found))
    every = sorted({point.shots for one in found.values() for point in one.points})
    width = 0.85 / (len(every) + 2)

    def bar(place: int, slot: int, value: float, ends: tuple[float, float], label: str, **style: Any) -> None:
        text = label if label not in bars.get_legend_handles_labels()[1] else None
        x = place + (slot - (len(every) + 1) / 2) * width
        bars.bar(x, 100 * value, 0.9 * width, yerr=whiskers(value, *ends), label=text, error_kw={"elinewidth": 0.8}, **style)

    for place, one in enumerate(found.values()):
        bar(place, 0, one.zero_shot, wilson(one.zero_shot_N), "zero-shot", color=COLOURS[1])
        for point in one.points:
            half, slot = (point.half_width if len(point.accuracies) > 1 else 0.0), 1 + every.index(point.shots)
            ends = (point.mean - half, point.mean + half)
            bar(place, slot, point.mean, ends, f"{point.shots}-shot probe", color=COLOURS[0], alpha=0.3 + 0.5 * slot / len(every))
        bar(place, len(every) + 1, one.everything, wilson(one.everything_N), "probe, all rows", color=COLOURS[2])
    bars.set_xticks(range(len(found)), list(found))
    bars.set(ylabel="top-1, %", title=model)
    bars.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)  # below: the bars fill the axes
    differences = sorted((*paired(one.zero_shot_N, one.everything_N), name) for name, one in found.items())
    for place, (mean, low, high, _) in enumerate(differences):
        style = {"xerr": whiskers(mean, low, high), "error_kw": {"elinewidth": 0.8}, "color": COLOURS[1 if mean > 0 else 2]}
        apart.barh(place, 100 * mean, 0.6, **style)
    apart.axvline(0, color="black", linewidth=0.8)
    apart.set_yticks(range(len(differences)), [name for *_, name in differences])
    apart.set(xlabel="points of top-1", title="zero-shot minus probe on all rows")
    return save(figure, path)


def whiskers(mean: float, low: float, high: float) -> NDArray[np.float64]:
    """Per cent below and above, as matplotlib takes them; an interval's middle is not the mean, which may lie next to its end."""
    away: NDArray[np.float64] = np.maximum([[100 * (mean - low)], [100 * (high - mean)]], 0.0)
    return away


def draw_shots(
    model: str, found: Mapping[str, FewShot], average: Sequence[Point], zero_shot: float, everything: float, path: Path
) -> Path:
    """Top-1 over examples a class: each corpus thin, their average with its interval."""
    figure, (axes,) = panels(1, side=4.5)
    if len(found) > 1:
        for number, (name, one) in enumerate(found.items()):
            shots, means = [point.shots for point in one.points], [100 * point.mean for point in one.points]
            axes.plot(shots, means, ".-", linewidth=0.8, alpha=0.6, color=COLOURS[3 + number % 4], label=name)
    shots = [point.shots for point in average]
    widths = [100 * point.half_width if len(point.accuracies) > 1 else 0.0 for point in average]
    label = "linear probe, average" if len(found) > 1 else "linear probe"
    axes.errorbar(shots, [100 * point.mean for point in average], widths, fmt="o-", color=COLOURS[0], label=label)
    axes.axhline(100 * zero_shot, linestyle="--", color=COLOURS[1], label="zero-shot")
    axes.axhline(100 * everything, linestyle="--", color=COLOURS[2], label="probe, all rows")
    if (match := of_shots(average, zero_shot)["examples_to_match"]) is not None:
        axes.axvline(match, linestyle=":", color=COLOURS[1])
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(n) for n in shots])
    axes.set(xlabel="labelled examples a class", ylabel="top-1, %", title=model)
    axes.legend(fontsize=7)
    return save(figure, path)
