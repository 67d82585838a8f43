"""`clip_demo`: coloured digits on two CPU cores, in minutes, with combinations that it never saw."""

from __future__ import annotations

from math import log

from sightline.models.augment import Augment
from sightline.models.objectives import Contrastive
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig
from sightline.pipelines.train.optim import OptimConfig
from sightline.pipelines.train.spec import DataConfig, RunSpec

COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def clip_demo() -> RunSpec:
    """A small convolutional tower and a bag of words, pooled by the mean, so that masks come free.

    Greying images (and taking their colour words away) teaches digits apart from colours; the word loss asks for
    each word by itself. Together they carry over to (colour, digit) pairs that training does not contain.
    """
    return RunSpec(
        recipe="clip_demo",
        model=ModelConfig(
            embed_dim=128,
            vision={"timm_model_name": "sightline_conv", "timm_pool": "avg", "timm_proj": "linear", "image_size": 48},
            text={"bag_of_words": True, "width": 128, "context_length": 24},
            preprocess=Preprocess(size=48, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            templates=("a {}",),
            init_logit_scale=log(10),
        ),
        objective=Contrastive(
            equal_captions_are_no_negatives=True,
            word_groups=(COLOURS, DIGITS),
            word_weight=2.0,
            unseen_pairs_are_no_negatives=True,
        ),
        data=DataConfig(split="train", augment=Augment(shift=3, grey=0.4, grey_removes=COLOURS)),
        optim=OptimConfig(lr=3e-3, warmup_steps=30),
        steps=800,
        global_batch=256,
    )
