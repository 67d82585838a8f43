"""The lens `erf`: the effective receptive field of models beside each other, with random weights and as trained.

A part is one model with the weights of one seed, or with those that it has; parts are independent, so whoever maps over them
(`job.py`) may do so anywhere, and squares of gradients add up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sightline.models import artifact
from sightline.models.interchange.origin import sha256
from sightline.models.lenses.erf import SHARE, Effective, Sum, effective_field, measure
from sightline.models.lenses.receptive_field import Field, receptive_fields, support, unit_gradient
from sightline.models.lenses.subject import DoesNotApply, Subject, load_subject
from sightline.models.sharding import block_names
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.lens.figures import COLOURS, INCH, need, save, show_field
from sightline.pipelines.lens.images import batches
from sightline.pipelines.lens.report import Seen

ALGORITHM = "sl-erf-2"
LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch")
GAMMA = 0.5  # of the colours: the paper's share of 4.55 % is at a fifth of the scale
FLOOR = 1e-3  # of profiles
COLUMNS = 4
Box = tuple[int, int, int, int]  # top, left, bottom, right; the last two excluded
SOURCE = "Luo, Li, Urtasun and Zemel 2016, Understanding the Effective Receptive Field in Deep Convolutional Neural Networks"


@dataclass(frozen=True)
class Part:
    """One thing to compute.

    Attributes:
        model, weights: as `load_subject` takes them.
        seed: of random weights; None for those of the model.
        layer: "" for the last one with places.
        corpus, root, split: where images come from; "" for noise.
        images: how many.
        digest: of the model's own files, where it has any.
    """

    model: str
    weights: str = ""
    seed: int | None = None
    layer: str = ""
    corpus: str = ""
    root: str = ""
    split: str | None = None
    images: int = 16
    digest: str = ""

    @property
    def key(self) -> str:
        """All that decides its numbers."""
        facts = [ALGORITHM, asdict(self), *(version(name) for name in LIBRARIES)]
        return "erf-" + hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Drawn:
    """The field of one model with one kind of weights, and what is said of it; `box` is its theoretical field in the image."""

    model: str
    trained: bool
    numbers: Mapping[str, Any]
    effective: Effective
    box: Box


def part_of(model: str, weights: str = "", **more: Any) -> Part:
    """A part whose model is where any worker finds it, and known by its files."""
    folder = artifact.find(model)  # of a run, whose checkpoints decide nothing here
    paths = [folder] if folder else [Path(name) for name in (model, weights) if name and Path(name).exists()]
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".safetensors", ".json"):
                digest.update(sha256(file).encode())
    model, weights = (str(Path(name).resolve()) if name and Path(name).exists() else name for name in (model, weights))
    return Part(model, weights, digest=digest.hexdigest() if paths else "", **more)


def compute(part: Part) -> dict[str, Tensor]:
    """The part's sum of squares [H, W], and of how many gradients.

    Raises:
        ValueError: there is no such model, layer, corpus or split.
    """
    subject = load_subject(part.model, part.weights, part.seed)
    corpus = Corpus.open(part.corpus, part.root or None) if part.corpus else None
    images = batches(corpus, part.split, part.images, subject.preprocess, part.seed or 0)
    found = effective_field(subject.tower, part.layer or last_layer(subject.tower), images)
    return {"squares_HW": found.squares_HW, "count": torch.tensor(found.count)}


def last_layer(tower: nn.Module) -> str:
    """The last block of a tower: the last layer whose output still has places.

    Raises:
        ValueError: the tower has no blocks; a layer must be named.
    """
    names = block_names(tower) or [name for name, module in tower.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise ValueError("the tower has neither blocks nor convolutions; name a layer with --layer")
    return names[-1]


def together(found: Sequence[Mapping[str, Tensor]]) -> Sum:
    """The sum over parts."""
    return Sum(torch.stack([one["squares_HW"] for one in found]).sum(0), sum(int(one["count"]) for one in found))


def report(parts: Sequence[Part], found: Sequence[Mapping[str, Tensor]], folder: Path) -> Seen:
    """The picture and the numbers of parts that were computed, in the order of their models: random weights, then its own, which
    say how many times the field of random ones theirs is.
    """
    groups: dict[tuple[str, bool], list[tuple[Part, Mapping[str, Tensor]]]] = {}
    for part, one in zip(parts, found, strict=True):
        groups.setdefault((part.model, part.seed is None), []).append((part, one))
    drawn: list[Drawn] = []
    before: dict[str, Effective] = {}
    for (model, trained), members in groups.items():
        first, effective = members[0][0], measure(together([one for _, one in members]).field())
        subject = load_subject(first.model, first.weights, first.seed)
        layer = first.layer or last_layer(subject.tower)
        theoretical, box = theoretical_field(subject, layer)
        numbers: dict[str, Any] = {
            "model": subject.name,
            "weights": "its own" if trained else f"random, {len(members)} seed{'s' * (len(members) > 1)}",
            "images": sum(int(one["count"]) for _, one in members),
            "layer": layer,
            "sigma": effective.sigma,
            "r2": effective.r2,
            "area": effective.area,
            "side": effective.side,
            "theoretical": theoretical,
            "ratio": effective.side / theoretical if theoretical else None,
        }
        if not trained:
            before[model] = effective
        elif model in before:
            random = before[model]
            numbers["grows"] = {"side": effective.side / random.side, "sigma": effective.sigma / random.sigma}
        drawn.append(Drawn(model, trained, numbers, effective, box))
    caption = (
        "How much each pixel changes the middle unit of a layer, the largest value 1. Dotted: the theoretical field, as far as the "
        "image goes. Below, cuts through the centres of the fields, dashed with random weights. Random weights give convolutional "
        "networks nearly Gaussian fields far smaller than the theoretical ones; training changes them as its task asks."
    )
    return Seen("erf", {"fields": [one.numbers for one in drawn]}, (draw(drawn, folder / "erf.svg"),), caption, SOURCE)


def theoretical_field(subject: Subject, layer: str) -> tuple[int | None, Box]:
    """The side of the theoretical field of a layer, None for the whole image, and the box of its middle unit's in the image.

    Where there is no closed form, of what the unit's gradient reaches on an image of noise.
    """
    side = subject.preprocess.size
    gradient, unit, _ = unit_gradient(
        subject.tower, layer, torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    )
    try:
        field = within(subject.tower, layer)
    except DoesNotApply:
        box = support(gradient) or (0, 0, side, side)
        reach = max(box[2] - box[0], box[3] - box[1])
        return None if reach == side else reach, box
    return None if field.everywhere else field.y.size, field.box(unit, (side, side))


def within(tower: nn.Module, layer: str) -> Field:
    """The field of a block's output: the widest of the convolutions in it, whichever branch that is on.

    Raises:
        DoesNotApply: there is none, or no closed form.
    """
    found = [one.field for one in receptive_fields(tower) if one.name == layer or one.name.startswith(f"{layer}.")]
    if not found:
        raise DoesNotApply(f"{layer} has no convolution")
    return max(found, key=lambda field: (field.everywhere, field.y.size))


def draw(fields: Sequence[Drawn], path: Path) -> Path:
    """The fields in one scale of colours, and below them their profiles in one pair of axes."""
    need()
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    across = min(len(fields), COLUMNS)
    down = -(-len(fields) // across)
    heights = (1.3 * down, 0.8 + 0.03 * len(fields))  # in panels: lines of title stand above each, the legend's below
    figure = Figure(figsize=(INCH * max(across, 2), INCH * sum(heights)), layout="constrained")
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    above, below = halves
    places = np.atleast_1d(above.subplots(down, across)).ravel()
    for place, one in zip(places, fields, strict=False):
        show_field(place, one.effective.field_HW, title(one.numbers), one.box)
        place.images[0].set_norm(PowerNorm(GAMMA, vmin=0, vmax=1))
    for unused in places[len(fields) :]:
        unused.set_axis_off()
    bar = above.colorbar(places[0].images[0], ax=list(places), shrink=0.7, aspect=30, ticks=(0, SHARE, 0.2, 0.4, 0.7, 1))
    bar.ax.set_yticklabels(("0", f"{SHARE:.1%}", "20%", "40%", "70%", "100%"))
    axes = below.subplots()
    colours = dict(zip(dict.fromkeys(one.model for one in fields), cycle(COLOURS), strict=False))
    for one in fields:
        label = f"{one.numbers['model']}, {one.numbers['weights']}"
        axes.plot(
            *profile(one.effective.field_HW), "-" if one.trained else "--", color=colours[one.model], linewidth=1.2, label=label
        )
    axes.axhline(SHARE, color="#555555", linestyle=":", linewidth=1)
    axes.set(yscale="log", ylim=(FLOOR, 1.2), xlabel="pixels from the centre, across", ylabel="share of the largest")
    below.legend(loc="outside lower center", ncols=2 if across > 2 else 1, frameon=False, fontsize=8)
    return save(figure, path)


def title(numbers: Mapping[str, Any]) -> str:
    """Lines no wider than a panel."""
    grows = f" (×{numbers['grows']['side']:.2f})" if "grows" in numbers else ""
    whole = "the whole image" if numbers["theoretical"] is None else f"{numbers['theoretical']:,} px"
    said = f"σ {numbers['sigma']:.1f}, √area {numbers['side']:.0f} px{grows}"
    return "\n".join([*wrap(numbers["model"], 40), numbers["weights"], said, f"theoretical: {whole}"])


def profile(field_HW: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pixels from a field's centre (of mass of its squares), and its size there: the root mean square over a band of rows, a
    sixteenth of the image high (one row says little of what comes in patches), the largest value 1.
    """
    height, width = field_HW.shape
    squares_HW = field_HW**2
    y, x = (float(squares_HW.sum(axis) @ np.arange(side) / squares_HW.sum()) for axis, side in ((1, height), (0, width)))
    middle, half = round(y), height // 32
    size_W = np.sqrt(squares_HW[max(0, middle - half) : middle + half + 1].mean(0))
    away_W = np.arange(width, dtype=np.float64) - np.float64(x)
    share_W: NDArray[np.float64] = size_W / size_W.max()
    return away_W, share_W
