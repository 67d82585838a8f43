"""Values of a specification that have the right type and make no sense, or that the run would ignore: each is refused."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from sightline.models.classifier import has_batch_norms
from sightline.models.lenses.nlmeans import REACH
from sightline.models.objectives import Classification, Contrastive, Prediction, Segmentation
from sightline.models.predictive import VOCABULARY
from sightline.models.rand_augment import STRONGEST
from sightline.models.towers import ModelConfig, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.masks import MaskClasses, check_names, labels_present, of_fold

if TYPE_CHECKING:
    from sightline.pipelines.train.optim import OptimConfig
    from sightline.pipelines.train.spec import RunSpec


def check_ranges(spec: RunSpec) -> None:
    """Refuse values that have the right type and make no sense, and settings that the run would ignore.

    Raises:
        ValueError: with what to give instead.
    """
    for name, value in (
        ("steps", spec.steps),
        ("global_batch", spec.global_batch),
        ("preprocess.size", spec.model.preprocess.size),
    ):
        if value < 1:
            raise ValueError(f"{name}={value}; give at least 1")
    check_optim(spec.optim)
    if isinstance(spec.objective, Classification):
        check_classification(spec, spec.objective)
    elif isinstance(spec.objective, Segmentation):
        check_segmentation(spec, spec.objective)
    else:
        check_pairs(spec, spec.objective)
    augment = spec.data.augment
    if augment.crop_area and not 0 < augment.crop_area[0] <= augment.crop_area[1] <= 1:
        raise ValueError(f"crop_area={list(augment.crop_area)}; give two shares of the image, as in [0.9, 1]")
    if augment.shift < 0:
        raise ValueError(f"shift={augment.shift}; give a number of pixels, or 0 for none")
    for name in ("flip", "grey", "word_drop", "feature_drop"):
        if not 0 <= getattr(augment, name) < (1 if name.endswith("drop") else 1.000001):
            raise ValueError(f"{name}={getattr(augment, name)}; give a probability")
    if augment.rand_augment and not (augment.rand_augment[0] >= 0 and 0 <= augment.rand_augment[1] <= STRONGEST):
        raise ValueError(
            f"rand_augment={list(augment.rand_augment)}; give [operations, strength], as in [2, 9], strength at most {STRONGEST}"
        )
    if augment.denoise is not None:
        if not 0 < augment.denoise[0] <= augment.denoise[1] <= 255:
            raise ValueError(
                f"denoise={list(augment.denoise)}; give the smallest and the largest standard deviation of the noise, above 0 and "
                "at most 255, as in [5, 15]"
            )
        if spec.model.preprocess.size <= REACH:
            raise ValueError(
                f"denoise looks {REACH} pixels around each, and preprocess.size={spec.model.preprocess.size} has no room for that; "
                f"give at least {REACH + 1}, or leave denoise out"
            )
    on_pixels = [name for name in ("crop_area", "shift", "flip", "denoise", "rand_augment", "grey") if getattr(augment, name)]
    if isinstance(spec.objective, Segmentation):
        on_pixels = [name for name in on_pixels if name != "flip"]  # both ways are kept
    if spec.model.keeps_features and on_pixels:
        raise ValueError(
            f"a locked image tower's features are computed once, without augmentation; leave out {', '.join(on_pixels)}"
        )
    if augment.feature_drop and (not spec.model.lock_image or spec.model.dense):
        raise ValueError("feature_drop is for a locked image tower without a decoder; give model.lock_image=true or leave it out")


def check_optim(optim: OptimConfig) -> None:
    """Refuse what AdamW and the schedule cannot take.

    Raises:
        ValueError: with what to give instead.
    """
    for name, value in (("lr", optim.lr), ("eps", optim.eps), ("clip_norm", optim.clip_norm)):
        if value is not None and not (isfinite(value) and value > 0):
            raise ValueError(f"optim.{name}={value}; give a positive number")
    for name, value in (("warmup_steps", optim.warmup_steps), ("weight_decay", optim.weight_decay)):
        if not (isfinite(value) and value >= 0):
            raise ValueError(f"optim.{name}={value}; give 0 or more")
    for name, high in (("cooldown", 1), ("layer_decay", 1), ("ema", 0.999999), ("beta1", 0.999999), ("beta2", 0.999999)):
        if not 0 <= getattr(optim, name) <= high:
            raise ValueError(f"optim.{name}={getattr(optim, name)}; give a number from 0 to {high}")


def check_pairs(spec: RunSpec, objective: Contrastive | Prediction) -> None:
    """Refuse what does not go with images and captions.

    Raises:
        ValueError: with what to give instead.
    """
    if (
        spec.model.is_classifier
        or spec.model.classes
        or spec.model.dense
        or spec.model.is_predictor != isinstance(objective, Prediction)
    ):
        raise ValueError(
            f"a {objective.kind} objective does not go with this model.text, model.classes or model.dense; take a recipe such as "
            "clip_small (contrastive) or captions_small (prediction)"
        )
    if isinstance(objective, Contrastive) and (objective.loss == "sigmoid") != (spec.model.init_logit_bias is not None):
        raise ValueError(
            f"objective.loss={objective.loss} and model.init_logit_bias={spec.model.init_logit_bias} do not go together; "
            "the sigmoid loss begins with a bias (SigLIP: model.init_logit_bias=-10), info_nce has none"
        )
    if spec.model.pretrained and isinstance(objective, Prediction):
        raise ValueError("model.pretrained is for an image and a text tower; give the image tower's as model.pretrained_image")
    if spec.data.augment.mixup or spec.data.augment.cutmix:
        raise ValueError("mixup and cutmix mix labels, and captions cannot be mixed; leave them out")


def check_classification(spec: RunSpec, objective: Classification) -> None:
    """Refuse what does not go with a classifier.

    Raises:
        ValueError: with what to give instead.
    """
    if not spec.model.is_classifier:
        raise ValueError("a classification objective needs a model without a text tower (text={}); take a recipe such as vit_b16")
    if spec.model.pretrained:
        raise ValueError("model.pretrained is for an image and a text tower; give a classifier's as model.pretrained_image")
    if spec.model.quick_gelu:
        raise ValueError("model.quick_gelu is for open_clip's towers; take a backbone of timm with quickgelu in its name")
    if spec.model.lock_image:
        raise ValueError("a classifier trains its image tower; leave out model.lock_image, or give optim.layer_decay")
    if not 0 <= objective.label_smoothing < 1:
        raise ValueError(f"objective.label_smoothing={objective.label_smoothing}; give a share from 0 to 1")
    augment = spec.data.augment
    for name in ("mixup", "cutmix"):
        if not 0 <= getattr(augment, name) < float("inf"):
            raise ValueError(f"{name}={getattr(augment, name)}; give the α of a Beta distribution, or 0 for none")
    if ignored := [name for name in ("grey_removes", "word_drop") if getattr(augment, name)]:
        raise ValueError(f"{' and '.join(ignored)} change captions, and a classifier reads none; leave them out")


def check_segmentation(spec: RunSpec, objective: Segmentation) -> None:
    """Refuse what does not go with masks.

    Raises:
        ValueError: with what to give instead.
    """
    model, augment = spec.model, spec.data.augment
    if model.dense is None or model.is_classifier or model.is_predictor:
        raise ValueError("a segmentation objective needs a dual encoder with model.dense; take a recipe such as lseg_camvid")
    if not 1 <= objective.loss_stride <= model.preprocess.size:
        raise ValueError(f"objective.loss_stride={objective.loss_stride}; give 1 to {model.preprocess.size}")
    for name in ("background_weight", "word_weight"):
        if not 0 <= getattr(objective, name) < float("inf"):
            raise ValueError(f"objective.{name}={getattr(objective, name)}; give 0 or more")
    unknown = ("rand_augment", "grey", "grey_removes", "word_drop", "mixup", "cutmix")
    if ignored := [name for name in unknown if getattr(augment, name)]:
        raise ValueError(f"{', '.join(ignored)} cannot be done to masks; leave out, or take crop_area, shift and flip")


def check_model(model: ModelConfig) -> None:
    """Refuse a model that cannot be built, cannot take its own input, or depends on which rows a worker holds. No weights are made.

    Raises:
        ValueError: with what to give instead.
    """
    size, tokens = model.preprocess.size, model.context_length
    vocabulary = model.text.get("vocab_size", VOCABULARY)
    if vocabulary < VOCABULARY:
        raise ValueError(f"model.text.vocab_size={vocabulary}, and the tokenizer has {VOCABULARY} words; give as many")
    with torch.device("meta"), torch.no_grad():
        towers = build(model).eval()
        inputs = (torch.empty(1, 3, size, size), torch.zeros(1, tokens, dtype=torch.long))
        try:
            towers(*inputs[: 1 if model.is_classifier or model.dense else 2])
        except (RuntimeError, AssertionError, ValueError, IndexError) as error:
            raise ValueError(
                f"the model does not take images of {size} pixels and {tokens} tokens: {error}; give model.preprocess.size what "
                "model.vision.image_size says"
            ) from error
    if has_batch_norms(towers):
        raise ValueError(
            "this image tower has batch norms, and their numbers depend on which rows a worker holds; start from weights by "
            "model.pretrained_image=PATH (they are frozen then), or take a tower without: any ViT, Swin or ConvNeXt, resnet50_gn, "
            "resnetv2_50x1_bit, or a ResNet with model.vision.norm_layer=groupnorm"
        )


def mask_classes(
    objective: Segmentation, model: ModelConfig, corpus: Corpus, rows: NDArray[np.int64]
) -> tuple[Segmentation, ModelConfig]:
    """Which classes are held out, and which are trained on: those that have pixels in these rows.

    Raises:
        ValueError: a row has no mask, there are no such classes, too few are left, or only one of truth and head has a background.
    """
    classes = MaskClasses.of(corpus)
    held_out = tuple(sorted({*objective.held_out, *(of_fold(objective.fold, classes.names) if objective.fold else ())}))
    check_names(held_out, classes.names)
    assert model.dense is not None
    if classes.background != model.dense.background:
        there = "has a" if classes.background else "has no"
        raise ValueError(f"the corpus {there} background class; give model.dense.background={str(classes.background).lower()}")
    names = model.classes or tuple(name for name in labels_present(corpus, rows) if name not in held_out)
    check_names(names, [name for name in classes.names if name not in held_out])
    if len(names) < 2:
        raise ValueError(f"{len(names)} classes are left to train on; hold out fewer, or give model.classes at least two")
    return replace(objective, held_out=held_out, fold=""), replace(model, classes=names)
