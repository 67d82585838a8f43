"""Pixels become the towers' input, in the one place that training, evaluation and serving share.

An image served is an image trained: `Preprocess` travels inside the artifact, `pixels` is used for every image at evaluation and in
serving, and training differs from it only by its declared augmentation (`augment.py`).

Sides are rounded as torchvision rounds them (the long one down, the margin to the nearest even), so that open_clip's transform
crops the same pixels: one pixel off is up to 190 grey levels at an edge. Resampling is torch's antialiased bicubic kernel on
uint8, which gives the same bytes on every x86-64 instruction set and is within a grey level of Pillow's bicubic. Legend: B batch, C
channels, H W pixels, S the towers' input size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# A picture of 200,000 x 1 pixels is small, and one with its shorter side made 224 is not: 30 GB, of which the centre is kept.
LONGEST = 32
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """How an RGB image becomes an input of the image tower.

    Attributes:
        size: S, the side of the square input in pixels.
        mean, std: per channel, on the scale 0 to 1.
        resize: `shortest` scales the shorter side to S and crops the centre; `squash` scales both sides to S (SigLIP).
    """

    size: int
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resize: Literal["shortest", "squash"] = "shortest"

    def pixels(self, rgb_HWC: NDArray[np.uint8]) -> Tensor:
        """uint8 [3, S, S] of an RGB image: resized and centre-cropped; of a line or a banner, longer than LONGEST times its other
        side, the middle stands for the whole.
        """
        image_CHW = to_CHW(middle(rgb_HWC))
        height, width = image_CHW.shape[-2:]
        if self.resize == "squash":
            return resample(image_CHW, self.size, self.size)
        short = min(height, width)
        height, width = (int(self.size * side / short) for side in (height, width))
        top, left = (round((side - self.size) / 2) for side in (height, width))
        return resample(image_CHW, height, width)[:, top : top + self.size, left : left + self.size].contiguous()

    def normalise(self, image_BCHW: Tensor) -> Tensor:
        """float32 [B, 3, H, W] with the channels' mean and deviation taken out; the input is uint8."""
        mean = torch.tensor(self.mean, device=image_BCHW.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=image_BCHW.device).view(3, 1, 1) * 255
        return (image_BCHW.float() - mean) / std


def middle(rgb_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image without the ends by which it is longer than LONGEST times its other side."""
    height, width = rgb_HWC.shape[:2]
    most = LONGEST * min(height, width)
    top, left = (max(0, side - most) // 2 for side in (height, width))
    return rgb_HWC[top : top + most, left : left + most]


def to_CHW(rgb_HWC: NDArray[np.uint8]) -> Tensor:  # noqa: N802 - the name carries the axes
    """The image as a torch tensor with channels first, without a copy."""
    return torch.from_numpy(np.ascontiguousarray(rgb_HWC)).permute(2, 0, 1)


def resample(image_CHW: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resize of a uint8 image; an image of that size already is returned as it is."""
    if tuple(image_CHW.shape[-2:]) == (height, width):
        return image_CHW
    # Strides that say "channels last" through and through: torch then takes its faster kernel, and gives HWC back.
    image_BCHW = image_CHW.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(image_BCHW, size=(height, width), mode="bicubic", antialias=True)[0]
