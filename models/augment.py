"""Augmentation as a pure function of one image, its caption and a generator: no state, no global randomness.

The generator is keyed by (seed, epoch, row), never by worker, so the world size cannot change what a model sees. An
augmentation that makes a word untrue takes the word out of the caption.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.preprocess import Preprocess, resample, to_CHW


@dataclass(frozen=True)
class Augment:
    """What training may do to an image; the default does nothing beyond preprocessing.

    Attributes:
        crop_area: smallest and largest share of the image that a random crop keeps (aspect 3/4 to 4/3); None: no crop.
        shift: largest random shift in pixels each way; the border repeats.
        flip: probability of a left-right mirror (not for captions that say left and right).
        grey: probability of mixing the channels to grey by random weights.
        grey_removes: words that a grey image makes untrue; they are deleted from its caption.
        word_drop: probability with which each word of a caption is left out (a caption that would lose all keeps all).
        feature_drop: probability with which each feature of a locked tower is zeroed, the others scaled up (dropout on the
            inputs; it is here rather than in the towers so that it does not depend on the world size).
    """

    crop_area: tuple[float, float] | None = None
    shift: int = 0
    flip: float = 0.0
    grey: float = 0.0
    grey_removes: tuple[str, ...] = ()
    word_drop: float = 0.0
    feature_drop: float = 0.0


def augment(
    rgb_HWC: NDArray[np.uint8],
    caption: str,
    options: Augment,
    preprocess: Preprocess,
    random: np.random.Generator,
) -> tuple[Tensor, str]:
    """One training input: uint8 pixels [3, S, S] and its caption."""
    if options.crop_area:
        image_CHW = random_crop(to_CHW(rgb_HWC), options.crop_area, preprocess.size, random)
    else:
        image_CHW = preprocess.pixels(rgb_HWC)
    if options.flip and random.random() < options.flip:
        image_CHW = image_CHW.flip(-1)
    if options.shift:
        image_CHW = shifted(image_CHW, *random.integers(-options.shift, options.shift + 1, 2).tolist())
    if options.grey and random.random() < options.grey:
        weights_C = torch.from_numpy(random.dirichlet(np.ones(3)).astype(np.float32))
        grey_HW = torch.tensordot(weights_C, image_CHW.float(), dims=1).round().clamp(0, 255).to(torch.uint8)
        image_CHW, caption = grey_HW.expand(3, -1, -1), without(caption, options.grey_removes)
    return image_CHW.contiguous(), thinned(caption, options.word_drop, random)


def augment_features(features_F: Tensor, caption: str, options: Augment, random: np.random.Generator) -> tuple[Tensor, str]:
    """One training input of a locked tower: its features [F] with some of them dropped, and the caption."""
    if options.feature_drop:
        kept_F = torch.from_numpy(random.random(features_F.shape[0]) >= options.feature_drop)
        features_F = features_F * kept_F / (1 - options.feature_drop)
    return features_F, thinned(caption, options.word_drop, random)


def thinned(caption: str, probability: float, random: np.random.Generator) -> str:
    """The caption with each word left out by that probability; a caption that would lose all keeps all."""
    if not probability:
        return caption
    words = caption.split()
    kept = [word for word, lost in zip(words, random.random(len(words)) < probability, strict=True) if not lost]
    return " ".join(kept or words)


def shifted(image_CHW: Tensor, down: int, right: int) -> Tensor:
    """The image moved by whole pixels; the border repeats."""
    height, width = image_CHW.shape[-2:]
    rows_H = (torch.arange(height) - down).clamp(0, height - 1)
    columns_W = (torch.arange(width) - right).clamp(0, width - 1)
    return image_CHW[:, rows_H][:, :, columns_W]


def random_crop(image_CHW: Tensor, area: tuple[float, float], size: int, random: np.random.Generator) -> Tensor:
    """A random-resized crop (Szegedy et al. 2015) of side `size`."""
    top, left, height, width = crop_box(image_CHW.shape[-2], image_CHW.shape[-1], area, random)
    return resample(image_CHW[:, top : top + height, left : left + width], size, size)


def crop_box(height: int, width: int, area: tuple[float, float], random: np.random.Generator) -> tuple[int, int, int, int]:
    """top, left, height and width of a crop: share of the area uniform in `area`, aspect log-uniform in 3/4 to 4/3.

    As in torchvision, a box that does not fit is drawn again: bending it into the image would distort more than was asked
    for. After ten tries it is the largest centred box whose aspect is within the bounds.
    """
    low, high = 3 / 4, 4 / 3
    for _ in range(10):
        share, aspect = random.uniform(*area), exp(random.uniform(log(low), log(high)))
        box_height, box_width = round(sqrt(height * width * share / aspect)), round(sqrt(height * width * share * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = random.integers(0, height - box_height + 1), random.integers(0, width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_height, box_width = min(height, max(1, round(width / low))), min(width, max(1, round(height * high)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def without(caption: str, words: tuple[str, ...]) -> str:
    """The caption with the given whole words deleted and its spaces mended."""
    if not words:
        return caption
    return " ".join(re.sub(rf"\b({'|'.join(map(re.escape, words))})\b", " ", caption, flags=re.IGNORECASE).split())
