"""Recipes for classifiers: the ViT paper's three sizes for clusters, and two for ten classes of photos on a few CPU cores.

The corpus needs one label a row; the class list is its own unless `model.classes` says otherwise.
"""

from __future__ import annotations

from sightline.models.augment import Augment
from sightline.models.objectives import Classification
from sightline.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from sightline.models.towers import ModelConfig
from sightline.pipelines.train.optim import OptimConfig
from sightline.pipelines.train.spec import DataConfig, RunSpec

IMAGENET_IMAGES, IMAGENET_BATCH, IMAGENET_EPOCHS = 1_281_167, 4096, 300


def vit_b16() -> RunSpec:
    """ViT-B/16: 12 layers, width 768, 86 M parameters."""
    return _from_scratch("vit_b16", "vit_base_patch16_224", width=768)


def vit_l16() -> RunSpec:
    """ViT-L/16: 24 layers, width 1,024, 307 M parameters."""
    return _from_scratch("vit_l16", "vit_large_patch16_224", width=1024)


def vit_h14() -> RunSpec:
    """ViT-H/14: 32 layers, width 1,280, 632 M parameters."""
    return _from_scratch("vit_h14", "vit_huge_patch14_224", width=1280)


def _from_scratch(recipe: str, architecture: str, width: int) -> RunSpec:
    """Pre-training on ImageNet with a hidden layer in the head: the ViT paper's table 3, row "ImageNet", and its appendix B.1."""
    return RunSpec(
        recipe=recipe,
        model=ModelConfig(
            embed_dim=width,
            vision={"timm_model_name": architecture, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1},
            text={},
            preprocess=Preprocess(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ),
        objective=Classification(),
        data=DataConfig(split="train", augment=Augment(crop_area=(0.05, 1.0), flip=0.5)),
        optim=OptimConfig(lr=3e-3, warmup_steps=10_000, weight_decay=0.3, beta2=0.999, eps=1e-8),
        steps=IMAGENET_EPOCHS * IMAGENET_IMAGES // IMAGENET_BATCH,
        global_batch=IMAGENET_BATCH,
    )


def imagenette_small() -> RunSpec:
    """From random weights on a thousand photos of ten classes, 64 pixels a side: a small ConvNeXt."""
    return RunSpec(
        recipe="imagenette_small",
        model=ModelConfig(
            embed_dim=0,
            vision={
                "timm_model_name": "convnext_atto",
                "depths": [2, 2, 4, 2],
                "dims": [32, 64, 128, 256],
                "drop_path_rate": 0.1,
            },
            text={},
            preprocess=Preprocess(size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ),
        objective=Classification(label_smoothing=0.1),
        data=DataConfig(
            split="train", augment=Augment(crop_area=(0.35, 1.0), flip=0.5, rand_augment=(1, 6.0), mixup=0.2, cutmix=1.0)
        ),
        optim=OptimConfig(lr=2e-3, warmup_steps=50, weight_decay=0.05, beta2=0.999, ema=0.99),
        steps=1000,
        global_batch=64,
    )


def imagenette_finetune() -> RunSpec:
    """A DeiT-Tiny of ImageNet (`model.pretrained_image=PATH`) on ten classes; `size=288` is a higher resolution."""
    return RunSpec(
        recipe="imagenette_finetune",
        model=ModelConfig(
            embed_dim=0,
            vision={"timm_model_name": "deit_tiny_patch16_224", "drop_path_rate": 0.1},
            text={},
            preprocess=Preprocess(size=224, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        ),
        objective=Classification(label_smoothing=0.1),
        data=DataConfig(split="train", augment=Augment(crop_area=(0.85, 1.0), flip=0.5)),
        optim=OptimConfig(lr=5e-4, warmup_steps=5, weight_decay=0.05, beta2=0.999, layer_decay=0.3),
        steps=40,
        global_batch=50,
    )
