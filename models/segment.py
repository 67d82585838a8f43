"""Open-vocabulary segmentation: labels typed by a person become a label map of the image's own size.

    features  dense readout of the tower                                  [D, h, w]
    scores    features · (label − mean of the contrast prompts)           [L, h, w]   what all labels share says nothing
    upsampled to the image, refined along its edges                       [L, H, W]
    relative to each label's largest score: a pixel belongs to the highest label, if that exceeds `threshold`; else to none

Legend: L labels, D embedding, H W the image's pixels, h w the tower's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.clip import Clip
from sightline.models.dense import dense_features
from sightline.models.preprocess import resample, to_CHW
from sightline.models.refine import refine
from sightline.models.zeroshot import BACKGROUND

# What pictures are full of besides the labels; contrast for models that do not know their classes.
COMMON_STUFF = ("sky", "ground", "wall", "floor", "grass", "water", "building", "tree", "road", "a blurry background")


@dataclass(frozen=True)
class SegmentOptions:
    """How scores become masks.

    Attributes:
        threshold: share of a label's largest score that a pixel needs to belong to it.
        contrast: prompts whose mean is taken out of every label.
        refine_steps: iterations of the refinement by the image; 0 leaves the upsampled scores as they are.
    """

    threshold: float = 0.5
    contrast: tuple[str, ...] = COMMON_STUFF
    refine_steps: int = 10

    @classmethod
    def for_model(cls, model: Clip) -> SegmentOptions:
        """The model's own classes are the contrast where they are known."""
        classes = tuple(name for name in model.classes if name != BACKGROUND)
        return cls(contrast=classes) if len(classes) > 1 else cls()


@dataclass(frozen=True)
class Segmentation:
    """label_map_HW: uint8, 0 is background and i + 1 is labels[i]; scores_LHW: float32, 1 at each label's strongest pixel."""

    label_map_HW: NDArray[np.uint8]
    scores_LHW: NDArray[np.float32]


@torch.inference_mode()
def segment(model: Clip, rgb_HWC: NDArray[np.uint8], labels: Sequence[str], options: SegmentOptions | None = None) -> Segmentation:
    """Segment an RGB image by labels, at its own size.

    Raises:
        ValueError: no labels, more than 255, or a tower that cannot be read densely.
    """
    options = options or SegmentOptions.for_model(model)
    if len(labels) > 255:
        raise ValueError(f"{len(labels)} labels were given; a label map holds at most 255")
    weights_LD = model.classifier(labels)
    shared_D = model.classifier(list(dict.fromkeys([*options.contrast, *labels]))).mean(0)
    image_CHW = to_CHW(rgb_HWC)
    features_Dhw = dense_features(model.towers, model.preprocess.normalise(whole(image_CHW, model).to(model.device)))[0]
    scores_Lhw = torch.einsum("ld,dhw->lhw", weights_LD - shared_D, features_Dhw.float())
    scores_LHW = _to_image(scores_Lhw.cpu(), image_CHW, options.refine_steps, model.preprocess.size)
    relative_LHW = scores_LHW / scores_LHW.amax((1, 2), keepdim=True).clamp(min=1e-6)
    best_HW = relative_LHW.max(0)
    label_map_HW = torch.where(best_HW.values > options.threshold, best_HW.indices + 1, 0).to(torch.uint8)
    return Segmentation(label_map_HW.numpy(), relative_LHW.numpy())


def whole(image_CHW: Tensor, model: Clip) -> Tensor:
    """The whole image as one input [1, 3, S, S]: squashed rather than cropped, so that every pixel has an answer."""
    return resample(image_CHW, model.preprocess.size, model.preprocess.size)[None]


def _to_image(scores_Lhw: Tensor, image_CHW: Tensor, refine_steps: int, refined_side: int) -> Tensor:
    """Scores at the image's size: bilinear, refined where the longer side has at most as many pixels as the tower saw.

    Edges finer than the tower's input say nothing about its scores, and refinement costs 24 copies of them.
    """
    size = tuple(image_CHW.shape[-2:])
    work = tuple(max(1, round(side * min(1, refined_side / max(size)))) for side in size)
    scores = F.interpolate(scores_Lhw[None], size=work, mode="bilinear", align_corners=False)[0]
    if refine_steps:
        scores = refine(scores, resample(image_CHW, *work).float() / 255, steps=refine_steps)
    return scores if work == size else F.interpolate(scores[None], size=size, mode="bilinear", align_corners=False)[0]
