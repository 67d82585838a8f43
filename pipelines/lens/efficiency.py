"""The lens `efficiency`: a score over samples seen, run beside run: what contrasting captions saves against predicting them.

A run that was trained with `--evaluate SPLIT` keeps the scores of its checkpoints in `validation.jsonl` of its folder, a line
each; samples seen are steps times the global batch. Runs that differ by their seed alone are one line: their mean, in a band from
the least to the largest. Lines are compared where the slowest, the one whose best score is the least, had its best: how many
samples each took to get there, read off straight lines between the points that were measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.pipelines.lens.figures import COLOURS, panels, save
from sightline.pipelines.lens.report import Seen
from sightline.pipelines.train.spec import RunSpec, from_json
from sightline.pipelines.train.validate import NAME as SCORES

SOURCE = "Radford et al. 2021, figure 2"
RUN = "run.json"
UNNAMED = ("recipe", "seed", "data.corpus")  # what tells no two lines apart
# What a comparison of objectives keeps the same.
SHARED = ("steps", "global_batch", "precision", "model.vision", "model.preprocess", "data", "optim")


@dataclass(frozen=True)
class Run:
    """A run's folder, its specification, and its checkpoints' scores: step → metric → value."""

    folder: Path
    spec: RunSpec
    scores: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Line:
    """Runs that differ by their seed alone, and a metric of theirs at the K numbers of samples that all of them have."""

    label: str
    runs: tuple[Run, ...]
    samples_K: list[int]
    values_RK: NDArray[np.float64]

    @property
    def means(self) -> list[float]:
        """Over the runs [K]."""
        found: list[float] = self.values_RK.mean(0).tolist()
        return found


# ---- what was recorded ----


def read(folder: Path) -> Run:
    """A run and its scores; a step that was repeated after a kill counts once, a line that a kill cut off not at all.

    Raises:
        FileNotFoundError: it is no run's folder.
        ValueError: it is damaged, or has no scores.
    """
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"{folder} is no run: it has no {RUN}; name a folder that `sightline train` wrote below --runs")
    try:
        spec = from_json((folder / RUN).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / RUN} is damaged, or of another version: {str(error).splitlines()[0]}") from None
    scores: dict[int, dict[str, float]] = {}
    path = folder / SCORES
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        scores[int(record.pop("step"))] = record
    if not scores:
        raise ValueError(f"{folder} has no scores of its checkpoints; train it, in other --runs, with --evaluate SPLIT")
    return Run(folder, spec, dict(sorted(scores.items())))


def together(runs: Sequence[Run], metric: str) -> list[Line]:
    """The runs as lines, in the order in which they were given.

    Raises:
        ValueError: they cannot be compared: they are of several corpora, were scored on other images or without that metric, or two
            are the same.
    """
    grouped: dict[str, list[Run]] = {}
    first = runs[0]
    for run in runs:
        comparable(first, run, metric)
        same = grouped.setdefault(replace(run.spec, seed=0).run_id, [])
        if twice := [str(other.folder) for other in same if other.spec.seed == run.spec.seed]:
            raise ValueError(f"{run.folder} is the same run as {twice[0]}; name it once")
        same.append(run)
    return [
        line(label, some, metric)
        for label, some in zip(labels([some[0].spec for some in grouped.values()]), grouped.values(), strict=True)
    ]


def comparable(first: Run, run: Run, metric: str) -> None:
    """Refuse a run that the first cannot be compared with.

    Raises:
        ValueError: with what differs.
    """
    roots = [one.spec.data.root for one in (first, run)]
    if roots[0] != roots[1]:
        raise ValueError(
            f"{first.folder} was trained on the corpus {roots[0][:12]} and {run.folder} on {roots[1][:12]}; name runs of one corpus"
        )
    for scores in run.scores.values():
        if metric not in choices(scores):
            raise ValueError(f"{run.folder} has no metric {metric!r}; --metric may be {', '.join(choices(scores)) or 'none'}")
        images = [one.get("images") for one in (next(iter(first.scores.values())), scores)]
        if images[0] != images[1]:
            raise ValueError(
                f"{first.folder} was scored on {images[0]} images and {run.folder} on {images[1]}; name runs of one split"
            )


def choices(scores: Mapping[str, float]) -> list[str]:
    """The metrics of which more is better: shares, and neither counts nor losses."""
    return sorted(name for name, value in scores.items() if isinstance(value, float) and not name.endswith("loss"))


def line(label: str, runs: Sequence[Run], metric: str) -> Line:
    """One line, at the steps that all of its runs were scored at.

    Raises:
        ValueError: there are none.
    """
    steps = sorted(set.intersection(*(set(run.scores) for run in runs)))
    if not steps:
        raise ValueError(f"no two checkpoints of {' and '.join(str(run.folder) for run in runs)} are of the same step")
    values_RK = np.array([[run.scores[step][metric] for step in steps] for run in runs], dtype=np.float64)
    return Line(label, tuple(runs), [step * runs[0].spec.global_batch for step in steps], values_RK)


# ---- settings ----


def flat(value: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """A specification's settings by dotted path."""
    found: dict[str, Any] = {}
    for name, below in value.items():
        found |= flat(below, f"{above}{name}.") if isinstance(below, Mapping) else {f"{above}{name}": below}
    return found


def differing(specs: Sequence[RunSpec]) -> dict[str, list[Any]]:
    """The settings that are not the same in all, with each one's value; None where there is no such setting."""
    every = [flat(asdict(spec)) for spec in specs]
    paths = sorted({path for settings in every for path in settings} - set(UNNAMED))
    values = {path: [settings.get(path) for settings in every] for path in paths}
    return {path: some for path, some in values.items() if any(value != some[0] for value in some)}


def labels(specs: Sequence[RunSpec]) -> list[str]:
    """The recipes, with the settings by which those of the same recipe differ."""
    found = []
    for spec in specs:
        same = [other for other in specs if other.recipe == spec.recipe]
        apart = {path.rpartition(".")[2]: some[same.index(spec)] for path, some in differing(same).items()}
        found.append(", ".join([spec.recipe, *(f"{name}={value}" for name, value in apart.items())]))
    return found


def unlike(settings: Mapping[str, Any]) -> list[str]:
    """Those of the settings that a comparison of objectives keeps the same."""
    return [path for path in settings if any(path == name or path.startswith(f"{name}.") for name in SHARED)]


# ---- arithmetic ----


def samples_to_reach(samples_K: Sequence[int], values_K: Sequence[float], level: float) -> float:
    """Where a line first reaches a level, which it does; its first point, if that is there already."""
    for i, value in enumerate(values_K):
        if value >= level:
            if i == 0:
                return float(samples_K[0])
            share = (level - values_K[i - 1]) / (value - values_K[i - 1])
            return float(samples_K[i - 1] + share * (samples_K[i] - samples_K[i - 1]))
    raise AssertionError(f"{max(values_K)} is below {level}")


def slowest(reached: Sequence[tuple[float, float]]) -> int:
    """Of (best score, samples to it) by line: which has the least best score; of several such, the one that took most samples."""
    return min(range(len(reached)), key=lambda i: (reached[i][0], -reached[i][1]))


# ---- numbers and figure ----


def look(runs: Sequence[Run], metric: str, folder: Path) -> Seen:
    """Draw and describe the runs.

    Raises:
        ValueError: they cannot be compared.
    """
    lines = together(runs, metric)
    bests = [max(one.means) for one in lines]
    tops = [float(one.samples_K[one.means.index(best)]) for one, best in zip(lines, bests, strict=True)]
    last = slowest(list(zip(bests, tops, strict=True)))
    level, most = bests[last], tops[last]
    reached = [samples_to_reach(one.samples_K, one.means, level) for one in lines]
    settings = differing([one.runs[0].spec for one in lines])
    zero_shot = all("zero_shot_classes" in scores for run in runs for scores in run.scores.values()) and metric.startswith("top")
    numbers = {
        "metric": metric,
        "zero_shot": zero_shot,
        "images": next(iter(runs[0].scores.values())).get("images"),
        "corpus_root": runs[0].spec.data.root,
        "level": level,
        "slowest": lines[last].label,
        "lines": [facts(one, samples, level, most) for one, samples in zip(lines, reached, strict=True)],
        "differ": settings,
    }
    caption = (
        f"A score over samples seen; dotted: the best of {lines[last].label}, and how many times fewer samples others took for it."
    )
    if others := unlike(settings):
        caption += f" The runs differ in more than what they are asked for: {', '.join(others)}."
    name = f"zero-shot {metric}" if zero_shot else metric
    figure = draw(lines, reached, level, most, name, folder / "efficiency.svg")
    return Seen("efficiency", numbers, (figure,), caption, SOURCE)


def facts(one: Line, reached: float, level: float, most: float) -> dict[str, Any]:
    """The numbers of one line; `at_most`: its first point was there already, so that the ratio is at least that."""
    spec, means = one.runs[0].spec, one.means
    return {
        "label": one.label,
        "recipe": spec.recipe,
        "objective": spec.objective.kind,
        "seeds": [run.spec.seed for run in one.runs],
        "runs": [str(run.folder) for run in one.runs],
        "steps": spec.steps,
        "global_batch": spec.global_batch,
        "points": [
            {"samples": samples, "mean": mean, "low": low, "high": high}
            for samples, mean, low, high in zip(
                one.samples_K, means, one.values_RK.min(0).tolist(), one.values_RK.max(0).tolist(), strict=True
            )
        ],
        "best": max(means),
        "samples_to_level": reached,
        "at_most": means[0] > level,
        "times_fewer": most / reached,
    }


def draw(lines: Sequence[Line], reached: Sequence[float], level: float, most: float, metric: str, path: Path) -> Path:
    """A line each, a band where there are seeds, and where each line meets the level."""
    figure, (axes,) = panels(1, side=5)
    for number, (one, samples) in enumerate(zip(lines, reached, strict=True)):
        colour, seeds = COLOURS[number % len(COLOURS)], len(one.runs)
        label = f"{one.label}, {f'{seeds} seeds' if seeds > 1 else f'seed {one.runs[0].spec.seed}'}"
        axes.plot(one.samples_K, [100 * value for value in one.means], ".-", color=colour, label=label)
        if seeds > 1:
            low_K, high_K = 100 * one.values_RK.min(0), 100 * one.values_RK.max(0)
            axes.fill_between(one.samples_K, low_K, high_K, color=colour, alpha=0.2, linewidth=0)
        if samples != most:
            ratio = f"{'≥ ' if one.means[0] > level else ''}{most / samples:.1f}×"
            axes.annotate(ratio, (samples, 100 * level), (0, 5), textcoords="offset points", ha="right", color=colour)
        axes.plot([samples], [100 * level], "o", color=colour, fillstyle="none")
    axes.axhline(100 * level, linestyle=":", color="#555555", zorder=0)
    axes.set(xlabel="samples seen", ylabel=f"{metric}, %")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    return save(figure, path)
