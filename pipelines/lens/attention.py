"""The lens `attention`: how far heads look, how sharply, and what it adds up to on images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.lenses.attention import LayerAttention, attentions, entropy, mean_distance, pick
from sightline.models.lenses.flow import attended, relevance_of, rollout
from sightline.models.lenses.subject import Subject
from sightline.pipelines.lens.figures import FIELD, panels, save
from sightline.pipelines.lens.report import Seen

SOURCE = (
    "distance: Dosovitskiy et al. 2021, figure 7; rollout: Abnar and Zuidema 2020; relevance: Chefer, Gur and Wolf 2021; weights "
    "are recomputed from the model's own projections"
)
Score = Callable[[Any], Tensor]


def look(subject: Subject, pixels_BCHW: Tensor, folder: Path, *, label: str = "", layer: str = "") -> Seen:
    """Attention of a tower to uint8 images [B, 3, S, S].

    Args:
        label: for a model with a text tower: relevance is for this text's similarity; otherwise for the largest output.
        layer: whose heads are drawn, by name or number; none by default.

    Raises:
        ValueError: the tower has no attention, or no such layer.
    """
    images_BCHW = subject.preprocess.normalise(pixels_BCHW)
    layers = attentions(subject.tower, images_BCHW, score_of(subject, label))
    maps = {
        "rollout": attended(subject.tower, layers, rollout(layers)),
        "relevance": attended(subject.tower, layers, relevance_of(layers)),
    }
    figures = [draw_depth(subject.name, layers, folder), draw_sheet(pixels_BCHW, maps, folder / "attention.png")]
    if layer:
        figures.append(draw_heads(pixels_BCHW[0], pick(layers, layer), folder / "attention-heads.png"))
    numbers = {
        "model": subject.name,
        "images": len(pixels_BCHW),
        "score": f"similarity to {label!r}" if label else "the largest output",
        "layers": [facts(one) for one in layers],
    }
    caption = (
        "Mean distance in pixels between a place and what it attends to, a dot a head: shallow layers have near and far heads, "
        "deep ones look everywhere. Below, what attention adds up to through all layers (rollout), and the part of it that "
        "speaks for a score (relevance)."
    )
    return Seen("attention", numbers, tuple(figures), caption, SOURCE)


def score_of(subject: Subject, label: str) -> Score:
    """What relevance is for: a number an image.

    Raises:
        ValueError: a label for a model without a text tower.
    """
    if not label:
        return lambda output: (output if output.ndim == 2 else output.mean(1)).amax(1)
    if subject.clip is None:
        raise ValueError(f"{subject.name} has no text tower to compare with {label!r}; leave --label away")
    clip = subject.clip
    text_D = clip.classifier([label])[0].clone()
    above = getattr(clip.towers.visual, "head", None) if hasattr(clip.towers.visual, "trunk") else None

    def score(output: Tensor) -> Tensor:
        embedding_BD = output if above is None else above(output)
        return F.normalize(embedding_BD, dim=-1) @ text_D

    return score


def facts(layer: LayerAttention) -> dict[str, Any]:
    """Of a layer, head by head."""
    distance = None if layer.pools else [round(value, 4) for value in mean_distance(layer).tolist()]
    return {
        "layer": layer.name,
        "distance_px": distance,
        "entropy_nats": [round(value, 4) for value in entropy(layer).tolist()],
        "grid": list(layer.grid),
        "window": None if layer.window is None else list(layer.window.size),
    }


def draw_depth(name: str, layers: Sequence[LayerAttention], folder: Path) -> Path:
    figure, (far, sharp) = panels(2, side=4)
    placed = [(depth, layer) for depth, layer in enumerate(layers, 1)]
    for depth, layer in placed:
        if not layer.pools:
            distances = sorted(mean_distance(layer).tolist())
            far.plot([depth] * len(distances), distances, "o", color="#0072b2", alpha=0.7, markersize=4)
        entropies = sorted(entropy(layer).tolist())
        sharp.plot([depth] * len(entropies), entropies, "o", color="#d55e00", alpha=0.7, markersize=4)
    far.set(xlabel="layer", ylabel="mean attention distance, pixels", title=name, ylim=(0, None))
    sharp.set(xlabel="layer", ylabel="entropy, nats", title="0: one token; high: all alike", ylim=(0, None))
    return save(figure, folder / "attention-depth.svg")


def draw_sheet(pixels_BCHW: Tensor, maps: dict[str, Tensor], path: Path) -> Path:
    """A contact sheet: a column an image, the picture and each map over it."""
    count = len(pixels_BCHW)
    figure, axes = panels(count * (1 + len(maps)), columns=count, side=1.8)
    for i, pixels_CHW in enumerate(pixels_BCHW):
        axes[i].imshow(pixels_CHW.permute(1, 2, 0).numpy())
        for row, (name, map_Bhw) in enumerate(maps.items(), 1):
            place = axes[row * count + i]
            overlay(place, pixels_CHW, map_Bhw[i])
            place.set_title(name if i == 0 else "", fontsize=8)
    for place in axes:
        place.set_axis_off()
    return save(figure, path)


def draw_heads(pixels_CHW: Tensor, layer: LayerAttention, path: Path) -> Path:
    """What the class token (or the middle place, or a pool's queries) attends to, head by head, on one image."""
    weights_HNN = layer.weights_BHNN[0]
    query = 0 if layer.pools or layer.prefix else (layer.grid[0] // 2) * layer.grid[1] + layer.grid[1] // 2
    heads = weights_HNN[:, query, layer.prefix :].unflatten(1, layer.grid)
    figure, axes = panels(len(heads), columns=6, side=1.8)
    for number, (place, map_hw) in enumerate(zip(axes, heads, strict=True)):
        overlay(place, pixels_CHW, map_hw)
        place.set_title(f"head {number}", fontsize=8)
        place.set_axis_off()
    figure.suptitle(layer.name, fontsize=9)
    return save(figure, path)


def overlay(axes: Any, pixels_CHW: Tensor, map_hw: Tensor) -> None:
    """A map of sizes over the picture that it is of, in grey."""
    height, width = pixels_CHW.shape[1:]
    grey: NDArray[Any] = np.asarray(pixels_CHW.float().mean(0))
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    large_HW = F.interpolate(map_hw[None, None].float(), (height, width), mode="bilinear")[0, 0]
    axes.imshow(large_HW.numpy(), cmap=FIELD, vmin=0, vmax=max(float(torch.quantile(large_HW, 0.995)), 1e-12), alpha=0.6)
