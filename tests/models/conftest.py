from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sightline.models.artifact import Artifact, write
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build

CONV = ModelConfig(
    embed_dim=16,
    vision={"timm_model_name": "sightline_conv", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
    text={"bag_of_words": True, "width": 8, "context_length": 12},
    preprocess=Preprocess(size=32),
)
VIT = ModelConfig(
    embed_dim=16,
    vision={"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "head_width": 16},
    text={"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    preprocess=Preprocess(size=32),
)
TIMM = ModelConfig(
    embed_dim=16,
    vision={"timm_model_name": "deit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 224},
    text={"bag_of_words": True, "width": 8, "context_length": 12},
    preprocess=Preprocess(size=224),
)


def random_towers(config: ModelConfig, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(config).eval()


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with random weights."""
    folder = tmp_path_factory.mktemp("artifact") / "artifact"
    described = Artifact("tiny", CONV, ("background", "red three", "blue one"), {"corpus_root": "0" * 64})
    write(folder, described, random_towers(CONV).state_dict(), ["a red three", "a photo"])
    return folder
