"""Models to export, and artifacts of them with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sightline.models.artifact import Artifact, write
from sightline.models.clip import Clip
from sightline.models.load import load_model
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig
from tests.models.conftest import VIT, random_towers

SIGMOID = replace(VIT, init_logit_bias=-10.0)
SQUASH = replace(VIT, preprocess=Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash"))
# timm's own small models for tests.
TIMM_VIT = replace(
    VIT,
    vision={"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160},
    preprocess=Preprocess(size=160),
)
CONVNEXT = replace(
    VIT, vision={"timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear", "timm_proj_bias": True}
)
TEXTS = ["a red three", "Two  dogs, running & jumping!", "", "con chó đang chạy", "word " * 40]


def artifact_of(config: ModelConfig, folder: Path) -> Clip:
    """An artifact with random weights, and the model that it is. Norms and biases are random too: nothing is a 0 or a 1."""
    towers = random_towers(config)
    random = torch.Generator().manual_seed(1)
    weights = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=random) if tensor.is_floating_point() and tensor.ndim else tensor
        for name, tensor in towers.state_dict().items()
    }
    weights |= {name: tensor.abs() for name, tensor in weights.items() if name.endswith("running_var")}
    described = Artifact("tiny", replace(config, templates=("a drawing of {}",)), ("cat", "dog"), {"corpus_root": "0" * 64})
    write(folder, described, weights, TEXTS)
    return load_model(str(folder))


def random_pixels(config: ModelConfig, count: int = 3) -> torch.Tensor:
    size = config.preprocess.size
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features, dim=-1)
