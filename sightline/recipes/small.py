"""Recipes for a few thousand photos on a CPU: `clip_small` from scratch, `lit_small` on a pretrained image tower."""

from __future__ import annotations

from math import log

from sightline.models.augment import Augment
from sightline.models.objectives import Contrastive
from sightline.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from sightline.models.towers import ModelConfig
from sightline.models.zeroshot import PHOTO_TEMPLATES
from sightline.pipelines.train.optim import OptimConfig
from sightline.pipelines.train.spec import DataConfig, RunSpec


def clip_small() -> RunSpec:
    """A ViT and a causal text transformer, both small, from random weights: open_clip's architecture, nothing added."""
    return RunSpec(
        recipe="clip_small",
        model=ModelConfig(
            embed_dim=128,
            vision={"image_size": 64, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
            text={"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 2},
            preprocess=Preprocess(size=64),
            templates=PHOTO_TEMPLATES,
        ),
        objective=Contrastive(),
        data=DataConfig(split="train", each="pair", augment=Augment(crop_area=(0.9, 1.0))),
        optim=OptimConfig(lr=1e-3, warmup_steps=50, weight_decay=0.2),
        steps=300,
        global_batch=128,
    )


def lit_small() -> RunSpec:
    """LiT (Zhai et al. 2022): a locked DeiT-Tiny from a local timm checkpoint; the text and the projections learn to meet it.

    Give the checkpoint as `model.pretrained_image=PATH`. Each image goes through the tower once.
    """
    return RunSpec(
        recipe="lit_small",
        model=ModelConfig(
            embed_dim=512,
            vision={
                "timm_model_name": "deit_tiny_patch16_224",
                "timm_pool": "token",
                "timm_proj": "mlp",
                "image_size": 224,
            },
            text={"bag_of_words": True, "width": 256, "context_length": 32},
            preprocess=Preprocess(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
            templates=PHOTO_TEMPLATES,
            init_logit_scale=log(10),
            lock_image=True,
        ),
        objective=Contrastive(),
        # A few thousand photos are few: features and words are dropped, and the temperature starts high.
        data=DataConfig(split="train", augment=Augment(word_drop=0.3, feature_drop=0.4)),
        optim=OptimConfig(lr=1.5e-3, warmup_steps=50, weight_decay=0.1),
        steps=220,
        global_batch=512,
    )
