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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sightline.models.interchange.origin import sha256
from sightline.models.lenses.erf import Effective, Sum, effective_field, measure
from sightline.models.lenses.receptive_field import Field, receptive_fields, unit_gradient
from sightline.models.lenses.subject import DoesNotApply, Subject, load_subject
from sightline.models.sharding import block_names
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.lens.figures import panels, save, show_field
from sightline.pipelines.lens.images import batches
from sightline.pipelines.lens.report import Seen

ALGORITHM = "sl-erf-1"
LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch")
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


def part_of(model: str, weights: str = "", **more: Any) -> Part:
    """A part whose model is where any worker finds it, and known by its files."""
    paths = [Path(name) for name in (model, weights) if name and Path(name).exists()]
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
    """The picture and the numbers of parts that were computed, in the order of their models: random weights, then its own."""
    groups: dict[tuple[str, bool], list[tuple[Part, Mapping[str, Tensor]]]] = {}
    for part, one in zip(parts, found, strict=True):
        groups.setdefault((part.model, part.seed is None), []).append((part, one))
    figure, axes = panels(len(groups))
    numbers: list[dict[str, Any]] = []
    for place, ((model, trained), members) in zip(axes, groups.items(), strict=True):
        size = measure(together([one for _, one in members]).field())
        first = members[0][0]
        facts = described(load_subject(first.model, first.weights, first.seed), first, size) | {
            "model": Path(model).name if Path(model).exists() else model,
            "weights": "its own" if trained else f"random, {len(members)} seeds",
            "images": sum(int(one["count"]) for _, one in members),
        }
        numbers.append(facts)
        box = facts.pop("box")
        show_field(place, size.field_HW, f"{facts['model']}\n{facts['weights']}: σ {size.sigma:.1f}, √area {size.side:.0f} px", box)
    caption = (
        "How much each pixel changes the middle unit of a layer (bright: much). Dotted: the theoretical field, where the image "
        "does not end first. Random weights give nearly Gaussian fields far smaller than it; training makes them grow."
    )
    return Seen("erf", {"fields": numbers}, (save(figure, folder / "erf.svg"),), caption, SOURCE)


def described(subject: Subject, part: Part, found: Effective) -> dict[str, Any]:
    """The numbers of one field; `box` is its theoretical one as far as the image goes, None where there is no closed form."""
    layer = part.layer or last_layer(subject.tower)
    side, box = subject.preprocess.size, None
    theoretical: int | None = None
    try:
        field = within(subject.tower, layer)
    except DoesNotApply:
        field = None
    if field is not None and not field.everywhere:
        _, unit, _ = unit_gradient(subject.tower, layer, torch.zeros(1, 3, side, side))
        theoretical, box = field.y.size, field.box(unit, (side, side))
    return {
        "layer": layer,
        "sigma": found.sigma,
        "r2": found.r2,
        "area": found.area,
        "side": found.side,
        "theoretical": theoretical,
        "ratio": found.side / theoretical if theoretical else None,
        "box": box,
    }


def within(tower: nn.Module, layer: str) -> Field:
    """The field of a block's output: the widest of the convolutions in it, whichever branch that is on.

    Raises:
        DoesNotApply: there is none, or no closed form.
    """
    found = [one.field for one in receptive_fields(tower) if one.name == layer or one.name.startswith(f"{layer}.")]
    if not found:
        raise DoesNotApply(f"{layer} has no convolution")
    return max(found, key=lambda field: (field.everywhere, field.y.size))
