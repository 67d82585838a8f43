"""A classifier is any timm backbone and a linear layer; for pre-training, a hidden layer stands between (Dosovitskiy et al. 2021).

Names are those of open_clip's timm towers (`visual.trunk`, `visual.head`): weights move between classifiers and dual encoders. The
last layer starts at zero, as in the ViT paper: what is learnt first is a linear readout of the features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from sightline.models.nonlocal_block import insert
from sightline.models.preprocess import Preprocess


class Classifier(nn.Module):
    """Normalised images [B, 3, S, S] → logits [B, L]."""

    def __init__(self, vision: Mapping[str, Any], *, size: int, classes: int, hidden: int) -> None:
        """Random weights, drawn from torch's current generator.

        Args:
            vision: `timm_model_name`, and whatever that architecture takes (`drop_path_rate`, `patch_size`, ...); `nonlocal` puts
                non-local blocks into its stages (`stage3:2`, see `nonlocal_block.insert`).
            size: S; an architecture whose weights depend on it is built for it.
            hidden: width of the head's hidden layer; 0 for none.

        Raises:
            ValueError: timm does not know the architecture or one of its options.
        """
        super().__init__()
        options = dict(vision)
        name, nonlocal_blocks = options.pop("timm_model_name", ""), options.pop("nonlocal", "")
        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), n=3) or ["vit_base_patch16_224", "convnext_tiny", "resnet50"]
            raise ValueError(
                f"a classifier is a timm backbone, and timm has no {name!r}; give model.vision.timm_model_name={' or '.join(near)}"
            )
        if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
            options = {"img_size": size} | options
        try:
            trunk = timm.create_model(name, **options)
        except (TypeError, ValueError, LookupError, AssertionError, RuntimeError) as error:  # whatever an architecture says
            raise ValueError(f"timm cannot build {name} with {options}: {error}") from error
        trunk.reset_classifier(0)
        if nonlocal_blocks:
            insert(trunk, nonlocal_blocks, norm=has_batch_norms(trunk))
        width = getattr(trunk, "head_hidden_size", None) or trunk.num_features
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if hidden:
            layers["hidden"], layers["tanh"] = nn.Linear(width, hidden), nn.Tanh()
        layers["proj"] = last = nn.Linear(hidden or width, classes)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.visual = nn.Sequential(OrderedDict(trunk=trunk, head=nn.Sequential(layers)))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BL: Tensor = self.visual(image_BCHW)
        return logits_BL


def freeze_batch_norms(module: nn.Module) -> nn.Module:
    """The module with batch norms as constants: the statistics, gains and biases of the weights that it is about to get."""
    frozen: nn.Module = freeze_batch_norm_2d(module) if has_batch_norms(module) else module
    return frozen


def has_batch_norms(module: nn.Module) -> bool:
    """Whether outputs depend on which rows are computed together. SyncBatchNorm counts too: it needs GPUs, and parts of a batch
    (`--at-once`) would still see statistics of their own."""
    return any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules())


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier ready for use: all that evaluation knows about it.

    Attributes:
        network: in evaluation mode.
        preprocess: image bytes → uint8 pixels → normalised input.
        name: what people call it.
        revision: sha256 of its weights.
        classes: what its logits stand for, in order.
    """

    network: Classifier
    preprocess: Preprocess
    name: str
    revision: str
    classes: tuple[str, ...]

    @torch.inference_mode()
    def logits(self, image_BCHW: Tensor) -> Tensor:
        """float32 [B, L] of uint8 pixels [B, 3, size, size] (see `preprocess.pixels`)."""
        inputs = self.preprocess.normalise(image_BCHW.to(next(self.network.parameters()).device))
        return self.network(inputs).float()
