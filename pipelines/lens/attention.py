"""The lens `attention`: how far heads look, how sharply, and what it adds up to on images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.classifier import TrainedClassifier
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


@dataclass(frozen=True)
class Heads:
    """Of a layer's heads [H]: how far they look, in pixels (None for a pool), and how evenly, in nats."""

    distance_H: Tensor | None
    entropy_H: Tensor


def look(subject: Subject, pixels_BCHW: Tensor, folder: Path, *, label: str = "", layer: str = "") -> Seen:
    """Attention of a tower to uint8 images [B, 3, S, S].

    Args:
        label: of a model with a text tower, any text, and relevance is for its similarity; of a classifier of ours one of its
            classes, for its logit; "" for the largest output (of a classifier of ours: logit).
        layer: whose heads are drawn, by name or number; none by default.

    Raises:
        ValueError: the tower has no attention, or no such layer.
    """
    score = score_of(subject, label)
    first: list[LayerAttention] = []
    heads: list[list[Heads]] = []
    maps: dict[str, list[Tensor]] = {"rollout": [], "relevance": []}
    for pixels_CHW in pixels_BCHW:  # one by one: the weights of all layers are large
        layers = attentions(subject.tower, subject.preprocess.normalise(pixels_CHW[None]), score)
        maps["rollout"].append(attended(subject.tower, layers, rollout(layers))[0])
        maps["relevance"].append(attended(subject.tower, layers, relevance_of(layers))[0])
        heads.append([Heads(None if one.pools else mean_distance(one), entropy(one)) for one in layers])
        first = first or layers
    means = [mean_of(of_layer) for of_layer in zip(*heads, strict=True)]
    figures = [draw_depth(subject.name, means, folder), draw_sheet(pixels_BCHW, maps, folder / "attention.png")]
    if layer:
        figures.append(draw_heads(pixels_BCHW[0], pick(first, layer), folder / "attention-heads.png"))
    numbers = {
        "model": subject.name,
        "images": len(pixels_BCHW),
        "score": score_name(subject, label),
        "layers": [facts(layer, mean) for layer, mean in zip(first, means, strict=True)],
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
        ValueError: a label for a model that has neither a text tower nor classes, or none of its classes.
    """
    if subject.classifier is not None:
        return logit_of(subject.classifier, label)
    if not label:
        return lambda output: (output if output.ndim == 2 else output.mean(1)).amax(1)
    if subject.clip is None:
        raise ValueError(f"{subject.name} has no text tower to compare with {label!r}, nor known classes; leave --label away")
    clip = subject.clip
    text_D = clip.classifier([label])[0].clone()
    above = getattr(clip.towers.visual, "head", None) if hasattr(clip.towers.visual, "trunk") else None

    def score(output: Tensor) -> Tensor:
        embedding_BD = output if above is None else above(output)
        return F.normalize(embedding_BD, dim=-1) @ text_D

    return score


def logit_of(classifier: TrainedClassifier, label: str) -> Score:
    """The logit of a class, or the largest one.

    Raises:
        ValueError: there is no such class.
    """
    if label and label not in classifier.classes:
        raise ValueError(f"{classifier.name} has no class {label!r}; give --label one of {', '.join(classifier.classes)}")
    head: Any = classifier.network.visual.head

    def score(output_BD: Tensor) -> Tensor:
        logits_BL: Tensor = head(output_BD)
        return logits_BL[:, classifier.classes.index(label)] if label else logits_BL.amax(1)

    return score


def score_name(subject: Subject, label: str) -> str:
    """What relevance is for, in words."""
    if subject.classifier is not None:
        return f"logit of {label!r}" if label else "the largest logit"
    return f"similarity to {label!r}" if label else "the largest output"


def mean_of(images: Sequence[Heads]) -> Heads:
    """Over images."""
    distances = [one.distance_H for one in images if one.distance_H is not None]
    return Heads(torch.stack(distances).mean(0) if distances else None, torch.stack([one.entropy_H for one in images]).mean(0))


def facts(layer: LayerAttention, heads: Heads) -> dict[str, Any]:
    """Of a layer, head by head."""
    return {
        "layer": layer.name,
        "distance_px": None if heads.distance_H is None else [round(value, 4) for value in heads.distance_H.tolist()],
        "entropy_nats": [round(value, 4) for value in heads.entropy_H.tolist()],
        "grid": list(layer.grid),
        "window": None if layer.window is None else list(layer.window.size),
    }


def draw_depth(name: str, layers: Sequence[Heads], folder: Path) -> Path:
    figure, (far, sharp) = panels(2, side=4)
    for depth, heads in enumerate(layers, 1):
        for place, values, colour in ((far, heads.distance_H, "#0072b2"), (sharp, heads.entropy_H, "#d55e00")):
            if values is not None:
                place.plot([depth] * len(values), values.tolist(), "o", color=colour, alpha=0.7, markersize=4)
    far.set(xlabel="layer", ylabel="mean attention distance, pixels", title=name, ylim=(0, None))
    sharp.set(xlabel="layer", ylabel="entropy, nats", title="0: one token; high: all alike", ylim=(0, None))
    return save(figure, folder / "attention-depth.svg")


def draw_sheet(pixels_BCHW: Tensor, maps: dict[str, list[Tensor]], path: Path) -> Path:
    """A contact sheet: a column an image, the picture and each map over it."""
    count = len(pixels_BCHW)
    figure, axes = panels(count * (1 + len(maps)), columns=count, side=1.8)
    for i, pixels_CHW in enumerate(pixels_BCHW):
        axes[i].imshow(pixels_CHW.permute(1, 2, 0).numpy())
        for row, (name, of_images) in enumerate(maps.items(), 1):
            place = axes[row * count + i]
            overlay(place, pixels_CHW, of_images[i])
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
