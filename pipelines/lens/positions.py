"""The lens `positions`: how alike the position embeddings of any two places are; `resolution.py` has what interpolating costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sightline.models.lenses.positions import Positions, cosine, positions, relative_biases
from sightline.models.lenses.subject import DoesNotApply, Subject
from sightline.pipelines.lens.figures import panels, save
from sightline.pipelines.lens.report import Seen

SOURCE = "Dosovitskiy et al. 2021, figure 7 (centre); rotary: Su et al. 2021; relative biases: Liu et al. 2021"
SHOWN = 5  # rows and columns of places whose similarities are drawn


def look(subject: Subject, folder: Path) -> Seen:
    """The position embeddings of a tower.

    Raises:
        DoesNotApply: it has none.
    """
    biases = relative_biases(subject.tower)
    try:
        found = positions(subject.tower)
    except DoesNotApply:
        if not biases:
            raise
        found = []
    figures = [draw(subject.name, one, folder / f"positions-{one.kind}.png") for one in found]
    if biases:
        figures.append(draw_biases(subject.name, biases, folder / "positions-biases.png"))
    numbers: dict[str, Any] = {"model": subject.name, "embeddings": [facts(one) for one in found], "biases": sorted(biases)}
    caption = (
        "Each small map is one place's embedding compared with all others (bright: alike). Learned embeddings know their "
        "neighbours, their row and their column, although nobody told them that there are rows."
    )
    return Seen("positions", numbers, tuple(figures), caption, SOURCE)


def facts(one: Positions) -> dict[str, Any]:
    """Mean cosines: to the four neighbours, within the row and the column, and to all other places."""
    near_PP = cosine(one.vector_PD)
    height, width = one.grid
    place = torch.arange(height * width)
    row, column = place // width, place % width
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    masks = {"neighbours": down + across == 1, "same_row": (down == 0) & (across > 0), "same_column": (across == 0) & (down > 0)}
    masks["others"] = (down > 0) & (across > 0)
    means = {name: float(near_PP[mask].mean()) if mask.any() else None for name, mask in masks.items()}
    return {
        "kind": one.kind,
        "grid": list(one.grid),
        "width": one.vector_PD.shape[1],
        "prefix": len(one.prefix_XD),
        "cosine": means,
    }


def draw(name: str, one: Positions, path: Path) -> Path:
    """Similarity maps of places spread over the grid, where these places are."""
    height, width = one.grid
    near_PP = cosine(one.vector_PD)
    rows, columns = (torch.linspace(0, side - 1, min(SHOWN, side)).round().long().tolist() for side in one.grid)
    figure, axes = panels(len(rows) * len(columns), columns=len(columns), side=1.1)
    for place, (row, column) in zip(axes, [(row, column) for row in rows for column in columns], strict=True):
        place.imshow(near_PP[row * width + column].reshape(height, width).numpy(), vmin=-1, vmax=1, cmap="viridis")
        place.set_axis_off()
    figure.suptitle(f"{name}: {one.kind} positions", fontsize=9)
    return save(figure, path)


def draw_biases(name: str, biases: dict[str, torch.Tensor], path: Path) -> Path:
    """The mean over heads of each layer's bias by offset."""
    figure, axes = panels(len(biases), columns=6, side=1.3)
    for number, (place, bias_Hhw) in enumerate(zip(axes, biases.values(), strict=True)):
        place.imshow(bias_Hhw.mean(0).numpy(), cmap="viridis")
        place.set_title(f"layer {number + 1}", fontsize=7)
        place.set_axis_off()
    figure.suptitle(f"{name}: relative biases by offset", fontsize=9)
    return save(figure, path)
