"""The lens `receptive-field`: the theoretical field of every layer, in closed form where there is one, and by gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.models.lenses.receptive_field import Layer, receptive_fields, support, unit_gradient
from sightline.models.lenses.subject import DoesNotApply, Subject
from sightline.models.sharding import block_names
from sightline.pipelines.lens.figures import panels, save
from sightline.pipelines.lens.report import Seen

SOURCE = "Araujo, Norris and Sim 2019, Computing Receptive Fields of Convolutional Neural Networks"


def look(subject: Subject, folder: Path) -> Seen:
    """The fields of a tower's layers.

    Raises:
        DoesNotApply: there are neither layers with a closed form nor blocks.
    """
    side = subject.preprocess.size
    try:
        layers, why = receptive_fields(subject.tower), ""
    except DoesNotApply as error:
        layers, why = [], str(error)
    if attends(subject.tower):
        layers, why = [], "its blocks attend; the field of each is measured by gradient"
    rows = [of_layer(layer) for layer in layers] or by_gradient(subject)
    if not rows:
        raise DoesNotApply(f"{subject.name} has no blocks to measure, and {why}")
    sizes = [min(row["size"] or side, 4 * side) for row in rows]
    figure, (axes,) = panels(1, side=5)
    axes.step(range(1, len(rows) + 1), sizes, where="mid")
    axes.axhline(side, linestyle=":", color="#555555")
    axes.annotate(f"the image, {side} px", (1, side), xytext=(0, 3), textcoords="offset points", color="#555555")
    axes.set(xlabel="layer", ylabel="receptive field, pixels", title=subject.name, ylim=(0, None))
    caption = (
        "How far a unit can see, layer by layer. A convolution widens the field by its reach times the stride below it; attention "
        "and pooling to one cell see everything at once."
    )
    numbers = {"model": subject.name, "image": side, "layers": rows, "without_closed_form": why}
    return Seen("receptive-field", numbers, (save(figure, folder / "receptive-field.svg"),), caption, SOURCE)


def attends(tower: nn.Module) -> bool:
    """Whether a block of the tower has attention, so that convolutions alone say little of what it sees."""
    blocks = [tower.get_submodule(name) for name in blocks_of(tower)]
    return any("Attention" in type(module).__name__ for block in blocks for module in block.modules())


def blocks_of(tower: nn.Module) -> list[str]:
    """The names of a tower's blocks: by where towers keep them, or by what torchvision calls them."""
    return block_names(tower) or [name for name, module in tower.named_modules() if type(module).__name__.endswith("Block")]


def of_layer(layer: Layer) -> dict[str, Any]:
    """In JSON; `size` is None for what sees the whole image."""
    field = layer.field
    size = None if field.everywhere else field.y.size
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "size": size,
        "stride": field.y.stride,
        "start": None if size is None else field.y.left,
    }


def by_gradient(subject: Subject) -> list[dict[str, Any]]:
    """The side of the box of pixels that change the middle unit of each block, for one image of noise."""
    side = subject.preprocess.size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = []
    for name in blocks_of(subject.tower):
        gradient, _, grid = unit_gradient(subject.tower, name, image)
        box = support(gradient)
        size = 0 if box is None else max(box[2] - box[0], box[3] - box[1])
        found.append({"layer": name, "kind": "block, by gradient", "size": size, "stride": side // grid[0], "start": None})
    return found
