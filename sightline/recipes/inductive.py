"""Recipes for what an architecture assumes about images, on a thousand photos of ten classes, 64 pixels a side, on a few CPU cores.

The ladder from ResNet-50 to ConvNeXt-T (`model.vision.rung=0` to 12) at a quarter of its widths, and three transformers of equal
FLOPs (50 million multiply-adds an image, ± 2 %) and as many tokens: of patches, of a ResNet's stem, of convolutions. All else is as
in `imagenette_small`, which costs as much as a rung, but for half its learning rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sightline.pipelines.train.spec import RunSpec
from sightline.recipes.supervised import imagenette_small


def ladder_small() -> RunSpec:
    """One rung of the ladder: `model.vision.rung=7`; 12 is ConvNeXt-T. Group norms stand for batch norms."""
    return _as_small("ladder_small", {"timm_model_name": "sightline_ladder", "rung": 12, "scale": 0.25, "batch_norm": False})


def inductive_vit() -> RunSpec:
    """A ViT: 64 patches of 8 pixels and a class token, six blocks."""
    return _transformer("inductive_vit", {"timm_model_name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 6})


def inductive_hybrid() -> RunSpec:
    """timm's hybrid R+ViT-Ti: a ResNet's stem of stride 4, 64 patches of 2 × 2 on its map, a class token, five blocks."""
    return _transformer("inductive_hybrid", {"timm_model_name": "vit_tiny_r_s16_p8_224", "patch_size": 2, "depth": 5})


def inductive_cct() -> RunSpec:
    """CCT-4/3×3: 64 tokens of three convolutions, four blocks, sequence pooling."""
    return _transformer(
        "inductive_cct",
        {"timm_model_name": "sightline_cct", "conv_layers": 3, "conv_width": 30, "depth": 4, "mlp_ratio": 4.0, "qkv_bias": True},
    )


def _transformer(recipe: str, vision: Mapping[str, Any]) -> RunSpec:
    return _as_small(recipe, {**vision, "embed_dim": 96, "num_heads": 3})


def _as_small(recipe: str, vision: Mapping[str, Any]) -> RunSpec:
    like = imagenette_small()
    model = replace(like.model, vision={**vision, "drop_path_rate": 0.1})
    return replace(like, recipe=recipe, model=model, optim=replace(like.optim, lr=1e-3))
