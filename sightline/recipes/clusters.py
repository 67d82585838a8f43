"""Recipes for clusters: open_clip's own ViT architectures, with the hyperparameters of its LAION-400M runs.

Global batch and steps are for 12.8 billion samples seen; `steps=` and `global_batch=` scale them to what there is.
"""

from __future__ import annotations

import open_clip

from sightline.models.augment import Augment
from sightline.models.objectives import Contrastive
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig
from sightline.models.zeroshot import PHOTO_TEMPLATES
from sightline.pipelines.train.optim import OptimConfig
from sightline.pipelines.train.spec import DataConfig, RunSpec

GLOBAL_BATCH = 32_768
SAMPLES_SEEN = 12_800_000_000


def clip_vit_b32() -> RunSpec:
    """ViT-B/32: 14.8 GFLOPs a pair forward."""
    return _open_clip_run("clip_vit_b32", "ViT-B-32", lr=1e-3)


def clip_vit_b16() -> RunSpec:
    """ViT-B/16: 41.1 GFLOPs a pair forward."""
    return _open_clip_run("clip_vit_b16", "ViT-B-16", lr=1e-3)


def clip_vit_l14() -> RunSpec:
    """ViT-L/14: 175.3 GFLOPs a pair forward."""
    return _open_clip_run("clip_vit_l14", "ViT-L-14", lr=5e-4)


def _open_clip_run(recipe: str, architecture: str, lr: float) -> RunSpec:
    config = open_clip.get_model_config(architecture)
    assert config is not None
    return RunSpec(
        recipe=recipe,
        model=ModelConfig(
            embed_dim=config["embed_dim"],
            vision=config["vision_cfg"],
            text=config["text_cfg"],
            preprocess=Preprocess(size=config["vision_cfg"]["image_size"]),
            templates=PHOTO_TEMPLATES,
        ),
        objective=Contrastive(),
        data=DataConfig(augment=Augment(crop_area=(0.9, 1.0))),
        optim=OptimConfig(lr=lr, warmup_steps=2_000, weight_decay=0.2),
        steps=SAMPLES_SEEN // GLOBAL_BATCH,
        global_batch=GLOBAL_BATCH,
    )
