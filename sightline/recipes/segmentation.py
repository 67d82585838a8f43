"""LSeg: a decoder learns to say what is where, in the space of a frozen text tower; labels are free at test time.

The corpus needs a mask a row. Classes may be held out by `objective.held_out=car,fence` or `objective.fold=1/4`.
"""

from __future__ import annotations

from dataclasses import replace

from sightline.models.augment import Augment
from sightline.models.lseg import DenseHead
from sightline.models.objectives import Segmentation
from sightline.models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from sightline.models.towers import ModelConfig
from sightline.models.zeroshot import PHOTO_TEMPLATES, PLAIN_TEMPLATES
from sightline.pipelines.train.optim import OptimConfig
from sightline.pipelines.train.spec import DataConfig, RunSpec
from sightline.recipes.clusters import clip_vit_l14
from sightline.recipes.demo import COLOURS, DIGITS, clip_demo


def lseg_camvid() -> RunSpec:
    """Street scenes: a frozen DeiT-Tiny (`model.pretrained_image=PATH`), whose maps are kept, and a small decoder.

    The text tower is a bag of words as in `lit_small`, whose artifact may be given as `model.pretrained_text`; without it, it has
    random weights: good enough to tell trained labels apart, and unseen ones mean nothing.
    """
    return RunSpec(
        recipe="lseg_camvid",
        model=ModelConfig(
            embed_dim=512,
            vision={"timm_model_name": "deit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 448},
            text={"bag_of_words": True, "width": 256, "context_length": 32},
            preprocess=Preprocess(size=448, mean=IMAGENET_MEAN, std=IMAGENET_STD, resize="squash"),
            templates=PLAIN_TEMPLATES,
            lock_image=True,
            dense=DenseHead(taps=(5, 11), widths=(128, 128)),
        ),
        objective=Segmentation(loss_stride=4),
        data=DataConfig(split="train", augment=Augment(flip=0.5)),
        optim=OptimConfig(lr=3e-3, warmup_steps=20, weight_decay=0.05),
        steps=240,
        global_batch=4,
    )


def lseg_scenes() -> RunSpec:
    """Coloured digits: both towers of a `clip_demo` artifact (`model.pretrained_image` and `model.pretrained_text`) stay as they
    are, so it classifies as before; a decoder that also looks at the pixels gives masks."""
    demo = clip_demo()
    return RunSpec(
        recipe="lseg_scenes",
        model=replace(
            demo.model,
            lock_image=True,
            dense=DenseHead(taps=(1, 2), widths=(96, 48, 32), blocks=3, pixels=True, background=True, image_embedding="tower"),
        ),
        objective=Segmentation(background_weight=0.2, word_groups=(COLOURS, DIGITS), word_weight=1.0),
        data=DataConfig(split="train", augment=Augment(shift=3)),
        optim=OptimConfig(lr=3e-3, warmup_steps=30),
        steps=400,
        global_batch=32,
    )


def lseg_vit_l14() -> RunSpec:
    """ViT-L/14 at 336 pixels, trained throughout, with LSeg's taps, for clusters.

    Give both towers as `model.pretrained_image=ViT-L-14/laion2b_s32b_b82k` and `model.pretrained_text` the same.
    """
    clip = clip_vit_l14().model
    return RunSpec(
        recipe="lseg_vit_l14",
        model=replace(
            clip,
            vision={**clip.vision, "image_size": 336},
            preprocess=replace(clip.preprocess, size=336, resize="squash"),
            templates=PHOTO_TEMPLATES,
            dense=DenseHead(taps=(5, 11, 17, 23), widths=(256, 256)),
        ),
        objective=Segmentation(loss_stride=2),
        data=DataConfig(split="train", augment=Augment(crop_area=(0.25, 1.0), flip=0.5)),
        optim=OptimConfig(lr=1e-4, warmup_steps=1_000, weight_decay=0.05, layer_decay=0.8),
        steps=40_000,
        global_batch=64,
    )
