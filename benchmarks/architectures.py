"""What an architecture assumes, on a thousand photos: the ladder, non-local blocks, and transformers with and without convolutions.

    python -m benchmarks.architectures CORPUS [--steps 300] [--seeds 3] [--runs FOLDER] [--only ladder nonlocal inductive]

CORPUS has one label a row and the splits `train` and `val` (`sightline ingest imagenette corpus`). All runs have the same recipe
but for the network, the same number of steps, and start from random weights; with `--runs` they stay there, and the same command
goes on. Tables go into BENCHMARKS.md, figures into docs/. The budget is small: what is compared is who learns most from little.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from benchmarks.command import sightline
from benchmarks.report import section
from sightline.models.ladder import LADDER, PAPER
from sightline.pipelines.lens.figures import COLOURS, panels, save

DOCS = Path(__file__).resolve().parent.parent / "docs"
SIZE = 64  # pixels a side, of the recipes
# In so few steps, what keeps a network from learning by heart only keeps it from learning.
LIGHT = ("mixup=0", "cutmix=0", "rand_augment=null")
NONLOCAL = {"without": "", "with two blocks in the third stage": "model.vision.nonlocal=stage3:2"}
INDUCTIVE = {
    "ViT, patches": "inductive_vit",
    "hybrid ViT, a ResNet's stem": "inductive_hybrid",
    "CCT, convolutional tokens": "inductive_cct",
    "ConvNeXt": "imagenette_small",
}


@dataclass(frozen=True)
class Scored:
    """One network after training.

    Attributes:
        top1: of each seed.
        images: how many it was scored on.
        giga_flops: of an image, forward, in 10⁹ multiply-adds.
        parameters: in millions.
    """

    top1: list[float]
    images: int
    giga_flops: float
    parameters: float

    @property
    def error(self) -> float:
        """The standard error of the mean: over seeds, or of a share of the images where there is but one."""
        if len(self.top1) > 1:
            return stdev(self.top1) / sqrt(len(self.top1))
        return sqrt(self.top1[0] * (1 - self.top1[0]) / self.images)

    def shown(self) -> str:
        return f"{100 * mean(self.top1):.1f} ± {100 * self.error:.1f} %"


@dataclass(frozen=True)
class Trainer:
    """How all of them are trained."""

    corpus: str
    steps: int
    runs: Path

    def score(self, recipe: str, seeds: int, *settings: str) -> Scored:
        """Train a recipe once for each seed, and score it on `val`."""
        given = [recipe, f"corpus={self.corpus}", f"steps={self.steps}", *LIGHT, *filter(None, settings)]
        plan = sightline("train", *given, "--dry-run")
        scores = []
        for seed in range(seeds):
            options = ("--runs", self.runs, "--without-ray", "--track", "none")
            report = sightline("train", *given, f"seed={seed}", *options)
            scores.append(sightline("evaluate", report["artifact"], self.corpus, "--split", "val")["metrics"])
            print(f"{' '.join(given)} seed={seed}: {scores[-1]['top1']:.2%}", file=sys.stderr, flush=True)
        macs = plan["flops_per_pair"] / 6e9  # two for a multiply-add; backward costs twice the forward
        return Scored([one["top1"] for one in scores], int(scores[0]["top1_rows"]), macs, plan["parameters"] / 1e6)

    def what(self, seeds: int) -> str:
        over = (
            f"means over {seeds} seeds with their standard error" if seeds > 1 else "one seed, with the standard error of a share"
        )
        photos = f"64 photos of {SIZE} × {SIZE} pixels, cropped and mirrored"
        return f"{self.steps} steps of {photos}, from random weights, top-1 on `val`, {over}"


def ladder(train: Trainer) -> None:
    """Each rung once, beside what the paper has for ImageNet."""
    found = [train.score("ladder_small", 1, f"model.vision.rung={rung}") for rung in range(len(LADDER))]
    header = ("rung", "", "10⁶ multiply-adds", "10⁶ parameters", "top-1 here", "top-1 of ImageNet in the paper")
    rows = [
        (str(i), LADDER[i].name, f"{1e3 * one.giga_flops:.0f}", f"{one.parameters:.2f}", one.shown(), f"{PAPER[i].top1:.1f} %")
        for i, one in enumerate(found)
    ]
    packages = ("torch", "timm")
    section("The ladder, trained", "python -m benchmarks.architectures CORPUS", train.what(1), packages, header, rows)
    figure, (axes,) = panels(1, side=6.4)
    places = range(len(found))
    bars = [100 * one.top1[0] for one in found]
    axes.barh(places, bars, xerr=[100 * one.error for one in found], color=COLOURS[0], ecolor="#555555", height=0.6)
    axes.set_yticks(places, [f"{rung.name} ({1e3 * one.giga_flops:.0f} M)" for rung, one in zip(LADDER, found, strict=True)])
    axes.invert_yaxis()
    axes.set_xlabel(f"top-1 after {train.steps} steps, % (multiply-adds of an image in brackets)")
    axes.set_xlim(left=max(0.0, min(bars) - 10))
    save(figure, DOCS / "ladder.svg")


def nonlocal_blocks(train: Trainer, seeds: int) -> None:
    """The same network with and without, at equal steps and from equal seeds."""
    found = {name: train.score("imagenette_small", seeds, setting) for name, setting in NONLOCAL.items()}
    without, with_blocks = found.values()
    gains = [after - before for before, after in zip(without.top1, with_blocks.top1, strict=True)]
    rows = [
        (name, f"{1e3 * one.giga_flops:.0f}", f"{one.parameters:.2f}", one.shown(), by_seed(one.top1))
        for name, one in found.items()
    ]
    gain = f"{100 * mean(gains):+.1f} ± {100 * stdev(gains) / sqrt(len(gains)):.1f} points"
    rows.append(("difference", "", "", gain, by_seed(gains, sign="+")))
    header = ("ConvNeXt", "10⁶ multiply-adds", "10⁶ parameters", "top-1", "each seed")
    section("Non-local blocks", "python -m benchmarks.architectures CORPUS", train.what(seeds), ("torch", "timm"), header, rows)


def by_seed(shares: list[float], sign: str = "") -> str:
    return ", ".join(f"{100 * share:{sign}.1f}" for share in shares)


def inductive(train: Trainer, seeds: int) -> None:
    """Transformers of equal FLOPs that see patches, a stem's map, or convolutional tokens, and a network of convolutions alone."""
    found = {name: train.score(recipe, seeds) for name, recipe in INDUCTIVE.items()}
    rows = [
        (name, f"{1e3 * one.giga_flops:.0f}", f"{one.parameters:.2f}", one.shown(), by_seed(one.top1))
        for name, one in found.items()
    ]
    header = ("", "10⁶ multiply-adds", "10⁶ parameters", "top-1", "each seed")
    section(
        "What convolutions bring to transformers",
        "python -m benchmarks.architectures CORPUS",
        train.what(seeds),
        ("torch", "timm"),
        header,
        rows,
    )
    figure, (axes,) = panels(1, side=4.8)
    places = range(len(found))
    axes.bar(
        places,
        [100 * mean(one.top1) for one in found.values()],
        yerr=[100 * one.error for one in found.values()],
        color=COLOURS[: len(found)],
        ecolor="#555555",
        width=0.6,
    )
    axes.set_xticks(places, [name.replace(", ", ",\n").replace("convolutional ", "convolutional\n") for name in found])
    axes.set_ylabel(f"top-1 after {train.steps} steps, %")
    save(figure, DOCS / "inductive.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, help="keep the runs there; by default they are removed")
    parser.add_argument("--only", nargs="+", choices=("ladder", "nonlocal", "inductive"))
    given = parser.parse_args()
    if given.seeds < 2:
        sys.exit("one seed says nothing about differences; give --seeds 2 or more")
    with tempfile.TemporaryDirectory() as name:
        train = Trainer(given.corpus, given.steps, given.runs or Path(name))
        if not given.only or "inductive" in given.only:
            inductive(train, given.seeds)
        if not given.only or "nonlocal" in given.only:
            nonlocal_blocks(train, given.seeds)
        if not given.only or "ladder" in given.only:
            ladder(train)


if __name__ == "__main__":
    main()
