"""What a lens looks at: one image tower, by one name, whatever library it is of, with the weights that it has or with random ones.

    demo/artifact                         an artifact or a run of ours, whatever it was trained for: its image tower
    ViT-B-32/laion2b_s34b_b79k            the same of open_clip, and of all else that `load_model` takes
    timm/deit_tiny_patch16_224            an architecture of timm, with its default pretrained weights or with those of a file
    torchvision/resnet50                  an architecture of torchvision, likewise

A seed in the place of weights draws random ones: what an architecture, also that of an artifact, sees before it was trained.
Gains that libraries begin at zero or next to it (of a residual branch's last norm, of layer scale) are 1 then, and maps that begin
at zero (a non-local block's last) are drawn like others: with them, a network is its shortcuts alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import timm
import torch
import torchvision
from open_clip.timm_model import TimmModel
from torch import nn

from sightline.models import artifact
from sightline.models.classifier import Classifier, TrainedClassifier
from sightline.models.clip import Clip
from sightline.models.interchange.load_weights import load_into
from sightline.models.load import load_model
from sightline.models.lseg import Lseg
from sightline.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from sightline.models.towers import build

LIBRARIES = ("timm", "torchvision")
SMALL = 1e-3  # layer scale begins at 1e-6 to 1e-4


class DoesNotApply(ValueError):  # noqa: N818 - it is an answer
    """A lens has nothing to say of a model: it has no attention, or no positions."""


@dataclass(frozen=True)
class Subject:
    """An image tower in evaluation mode, in float32 on the CPU.

    Attributes:
        name: what people call it.
        tower: normalised images [B, 3, S, S] → whatever it gives; a timm trunk or an open_clip tower itself, without a wrapper.
        preprocess: image bytes → its input.
        clip: the whole model, where the tower is one of two whose embeddings are compared.
        classifier: the whole model, where the tower is that of a trained classifier of ours.
    """

    name: str
    tower: nn.Module
    preprocess: Preprocess
    clip: Clip | None = None
    classifier: TrainedClassifier | None = None


def load_subject(name: str, weights: str = "", seed: int | None = None) -> Subject:
    """The tower of that name.

    Args:
        weights: for an architecture of timm or torchvision: a file of its weights in safetensors; "" for its default ones.
        seed: draw random weights instead; also for an artifact, of which only the architecture counts then.

    Raises:
        ValueError: there is no such model, or its weights cannot be had; the message names the choices.
    """
    if weights and seed is not None:
        raise ValueError("weights from a file and random ones by a seed exclude each other; give one of the two")
    library, _, architecture = name.partition("/")
    if library in LIBRARIES:
        tower, preprocess = (_timm if library == "timm" else _torchvision)(architecture, not weights and seed is None, seed)
        if weights:
            load_into(tower, weights)
        if seed is not None:
            _open_branches(tower)
        return Subject(name, tower.eval().float(), preprocess)
    if weights:
        raise ValueError(f"{name} has its own weights; those of a file are for timm/NAME and torchvision/NAME")
    folder = artifact.find(name)
    if seed is not None:
        if folder is None:
            raise ValueError(f"{name} has its own weights; random ones are for timm/NAME, torchvision/NAME and artifacts of ours")
        described = artifact.describe(folder)
        # Without the mark of given weights, whose batch norms are constants: their gains are parameters then, and can be opened.
        config = replace(described.model, pretrained="", pretrained_image="")
        torch.manual_seed(seed)
        tower = _image_tower(build(config))
        _open_branches(tower)
        return Subject(described.name, tower.eval().float(), config.preprocess)
    model = artifact.load_any(folder) if folder else load_model(name)
    if not isinstance(model, Clip):
        classifier = model if isinstance(model, TrainedClassifier) else None
        return Subject(model.name, _image_tower(model.network), model.preprocess, classifier=classifier)
    decodes = isinstance(model.towers, Lseg) and model.towers.head.image_embedding == "places"  # the tower embeds nothing by itself
    return Subject(model.name, _image_tower(model.towers), model.preprocess, None if decodes else model)


def _image_tower(towers: Any) -> nn.Module:
    """The trunk of timm or the tower of open_clip inside what an artifact holds."""
    visual: nn.Module = towers.visual
    trunk = visual.trunk if isinstance(towers, Classifier) or isinstance(visual, TimmModel) else visual
    assert isinstance(trunk, nn.Module)
    return trunk


def _timm(architecture: str, pretrained: bool, seed: int | None) -> tuple[nn.Module, Preprocess]:
    if not timm.is_model(architecture):
        raise ValueError(_unknown("timm", architecture, timm.list_models()))
    torch.manual_seed(seed or 0)
    try:
        tower = timm.create_model(architecture, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        raise ValueError(_no_weights(f"timm/{architecture}", error)) from error
    config = timm.data.resolve_model_data_config(tower)
    return tower, Preprocess(size=config["input_size"][-1], mean=tuple(config["mean"]), std=tuple(config["std"]))


def _torchvision(architecture: str, pretrained: bool, seed: int | None) -> tuple[nn.Module, Preprocess]:
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise ValueError(_unknown("torchvision", architecture, known))
    torch.manual_seed(seed or 0)
    try:
        tower: Any = torchvision.models.get_model(architecture, weights="DEFAULT" if pretrained else None)
    except (OSError, RuntimeError) as error:
        raise ValueError(_no_weights(f"torchvision/{architecture}", error)) from error
    size = getattr(tower, "image_size", 224)
    return tower, Preprocess(size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)


@torch.no_grad()
def _open_branches(tower: nn.Module) -> None:
    """Set gains that are all but zero to 1, and draw maps that are zero by torch's current generator."""
    for module in tower.modules():
        for name, parameter in module.named_parameters(recurse=False):
            scales = parameter.ndim == 1 or parameter.shape[1:].numel() == 1  # also [C, 1, 1], as ConvNeXt of torchvision has it
            if scales and name not in ("bias", "beta") and bool((parameter.abs() <= SMALL).all()):
                parameter.fill_(1.0)
        if isinstance(module, nn.Linear | nn.Conv2d) and not bool(module.weight.any()):
            module.reset_parameters()


def _unknown(library: str, architecture: str, known: list[str]) -> str:
    near = get_close_matches(architecture, known, n=3) or known[:3]
    return f"{library} has no {architecture!r}; nearest are {', '.join(f'{library}/{one}' for one in near)}"


def _no_weights(name: str, error: Exception) -> str:
    why = " ".join(str(error).split())[:200]
    return f"the weights of {name} cannot be fetched ({why}); name a file with --weights, or draw random ones with --seed"
