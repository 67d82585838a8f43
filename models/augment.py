"""Augmentation as a pure function of one image, its caption and a generator: no state, no global randomness.

The generator is keyed by (seed, epoch, row), never by worker, so the world size cannot change what a model sees. An
augmentation that makes a word untrue takes the word out of the caption. An image may also be mixed with another row's (`Mix`):
which one, and how, is drawn without looking at pixels, so that the weights of labels are known without them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.lenses.nlmeans import randomly_denoised
from sightline.models.preprocess import Preprocess, resample, to_CHW


@dataclass(frozen=True)
class Augment:
    """What training may do to an image; the default does nothing beyond preprocessing.

    Attributes:
        crop_area: smallest and largest share of the image that a random crop keeps (aspect 3/4 to 4/3); None: no crop.
        shift: largest random shift in pixels each way; the border repeats.
        flip: probability of a left-right mirror (not for captions that say left and right).
        denoise: smallest and largest standard deviation, on the scale 0 to 255, of the noise that non-local means takes out of
            every image at the network's size (Buades et al. 2005), drawn evenly; None: it is left alone. An image of 224 pixels
            takes a core a tenth of a second.
        rand_augment: how many operations of RandAugment, and how strong (0 to 30; Cubuk et al. 2020: 2 and 9 for ImageNet).
        grey: probability of mixing the channels to grey by random weights.
        grey_removes: words that a grey image makes untrue; they are deleted from its caption.
        word_drop: probability with which each word of a caption is left out (a caption that would lose all keeps all).
        feature_drop: probability with which each feature of a locked tower is zeroed, the others scaled up (dropout on the
            inputs; it is here rather than in the towers so that it does not depend on the world size).
        mixup, cutmix: α of the Beta distribution of the share that an image keeps when it is mixed with another one all over
            (Zhang et al. 2018) or gets a box of it (Yun et al. 2019), for labelled rows; 0 for neither, both for either by chance.
            Two images are decoded for each one then.
    """

    crop_area: tuple[float, float] | None = None
    shift: int = 0
    flip: float = 0.0
    denoise: tuple[float, float] | None = None
    rand_augment: tuple[int, float] | None = None
    grey: float = 0.0
    grey_removes: tuple[str, ...] = ()
    word_drop: float = 0.0
    feature_drop: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0


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
    if options.denoise:  # before colours change: noise is known by its size
        image_CHW = randomly_denoised(image_CHW, options.denoise, random)
    if options.rand_augment:
        from sightline.models.rand_augment import rand_augment  # torchvision takes a second to import, and few runs need it

        image_CHW = rand_augment(image_CHW, *options.rand_augment, random)
    if options.shift:
        image_CHW = shifted(image_CHW, *random.integers(-options.shift, options.shift + 1, 2).tolist())
    if options.grey and random.random() < options.grey:
        weights_C = torch.from_numpy(random.dirichlet(np.ones(3)).astype(np.float32))
        grey_HW = torch.tensordot(weights_C, image_CHW.float(), dims=1).round().clamp(0, 255).to(torch.uint8)
        image_CHW, caption = grey_HW.expand(3, -1, -1), without(caption, options.grey_removes)
    return image_CHW.contiguous(), thinned(caption, options.word_drop, random)


def augment_pair(
    rgb_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8], options: Augment, size: int, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """One training input for segmentation: pixels uint8 [3, S, S] and their mask uint8 [S, S], moved together.

    Without a crop the image is squeezed to the square, as it is for masks elsewhere (`segment.whole`). A mask takes the nearest
    pixel's number; what a shift brings in is the border's colour and the border's number.
    """
    image_CHW, mask_1HW = to_CHW(rgb_HWC), torch.from_numpy(mask_HW)[None]
    if options.crop_area:
        top, left, height, width = crop_box(image_CHW.shape[1], image_CHW.shape[2], options.crop_area, random)
        image_CHW, mask_1HW = (some[:, top : top + height, left : left + width] for some in (image_CHW, mask_1HW))
    image_CHW, mask_1HW = resample(image_CHW, size, size), nearest(mask_1HW, size)
    if options.flip and random.random() < options.flip:
        image_CHW, mask_1HW = image_CHW.flip(-1), mask_1HW.flip(-1)
    if options.denoise:  # moves nothing, so that the mask stays
        image_CHW = randomly_denoised(image_CHW, options.denoise, random)
    if options.shift:
        down, right = random.integers(-options.shift, options.shift + 1, 2).tolist()
        image_CHW, mask_1HW = shifted(image_CHW, down, right), shifted(mask_1HW, down, right)
    return image_CHW.contiguous(), mask_1HW[0].contiguous()


def nearest(mask_1HW: Tensor, size: int) -> Tensor:
    """A mask [1, H, W] at another size, each cell with the number of the pixel at its centre."""
    rows, columns = (((torch.arange(size) + 0.5) * side / size).long() for side in mask_1HW.shape[-2:])
    return mask_1HW[:, rows][:, :, columns]


def augment_features(features_F: Tensor, caption: str, options: Augment, random: np.random.Generator) -> tuple[Tensor, str]:
    """One training input of a locked tower: its features [F] with some of them dropped, and the caption."""
    if options.feature_drop:
        kept_F = torch.from_numpy(random.random(features_F.shape[0]) >= options.feature_drop)
        features_F = features_F * kept_F / (1 - options.feature_drop)
    return features_F, thinned(caption, options.word_drop, random)


@dataclass(frozen=True)
class Mix:
    """What an image is mixed with.

    Attributes:
        partner: the place of the other row among those that are trained on.
        kept: the share of the image, and of its label, that stays.
        box: top, left, height and width of what the other image replaces; None: all of it, by weight.
    """

    partner: int
    kept: float
    box: tuple[int, int, int, int] | None


def draw_mix(options: Augment, rows: int, size: int, random: np.random.Generator) -> Mix | None:
    """What to mix an image of that size with, out of so many rows; None where nothing is mixed."""
    kinds = [kind for kind, alpha in (("mixup", options.mixup), ("cutmix", options.cutmix)) if alpha]
    if not kinds:
        return None
    partner, kind = int(random.integers(rows)), kinds[int(random.integers(len(kinds)))]
    kept = float(random.beta(*(getattr(options, kind),) * 2))
    if kind == "mixup":
        return Mix(partner, kept, None)
    side = sqrt(1 - kept) * size
    down, right = random.integers(size, size=2).tolist()  # of the box's centre; the box ends where the image does
    top, left = max(0, round(down - side / 2)), max(0, round(right - side / 2))
    height, width = min(size, round(down + side / 2)) - top, min(size, round(right + side / 2)) - left
    return Mix(partner, 1 - height * width / size**2, (top, left, height, width))


def mixed(image_CHW: Tensor, other_CHW: Tensor, mix: Mix) -> Tensor:
    """The mixture, uint8 as both images are."""
    if mix.box is None:
        return torch.lerp(other_CHW.float(), image_CHW.float(), mix.kept).round().to(torch.uint8)
    top, left, height, width = mix.box
    out_CHW = image_CHW.clone()
    out_CHW[:, top : top + height, left : left + width] = other_CHW[:, top : top + height, left : left + width]
    return out_CHW


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
