"""RandAugment (Cubuk et al. 2020): a few operations, drawn evenly from fourteen, all equally strong; here by a given generator.

The operations and their ranges are those of torchvision's RandAugment, computed by its functional operators on uint8 pixels. Its
own class draws from torch's global generator, so that what a row becomes would depend on the rows before it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

STRONGEST = 30
FILL = [124.0, 116.0, 104.0]  # ImageNet's mean colour, where a moved image leaves nothing
Operation = Callable[[Tensor, float], Tensor]


def moved(image_CHW: Tensor, *, across: float = 0.0, down: float = 0.0, shear: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """The image moved by pixels or sheared by degrees; what it leaves has the mean colour."""
    return tv.affine(
        image_CHW,
        angle=0.0,
        translate=[round(across), round(down)],
        scale=1.0,
        shear=list(shear),
        interpolation=InterpolationMode.BILINEAR,
        fill=FILL,
        center=[0.0, 0.0] if any(shear) else None,
    )


# Called with a strength from −1 to 1, its sign drawn evenly; operations that have no direction take its size.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength: image,
    "shear_x": lambda image, strength: moved(image, shear=(float(np.degrees(np.arctan(0.3 * strength))), 0.0)),
    "shear_y": lambda image, strength: moved(image, shear=(0.0, float(np.degrees(np.arctan(0.3 * strength))))),
    "translate_x": lambda image, strength: moved(image, across=150 / 331 * image.shape[-1] * strength),
    "translate_y": lambda image, strength: moved(image, down=150 / 331 * image.shape[-2] * strength),
    "rotate": lambda image, strength: tv.rotate(image, 30 * strength, interpolation=InterpolationMode.BILINEAR, fill=FILL),
    "brightness": lambda image, strength: tv.adjust_brightness(image, 1 + 0.9 * strength),
    "colour": lambda image, strength: tv.adjust_saturation(image, 1 + 0.9 * strength),
    "contrast": lambda image, strength: tv.adjust_contrast(image, 1 + 0.9 * strength),
    "sharpness": lambda image, strength: tv.adjust_sharpness(image, 1 + 0.9 * strength),
    "posterize": lambda image, strength: tv.posterize(image, 8 - round(4 * abs(strength))),
    "solarize": lambda image, strength: tv.solarize(image, 255 * (1 - abs(strength))),
    "autocontrast": lambda image, strength: tv.autocontrast(image),
    "equalize": lambda image, strength: tv.equalize(image),
}


def rand_augment(image_CHW: Tensor, operations: int, strength: float, random: np.random.Generator) -> Tensor:
    """A uint8 image after so many operations of that strength, 0 to 30."""
    names = list(OPERATIONS)
    for _ in range(operations):
        name, sign = names[int(random.integers(len(names)))], 1 if random.random() < 0.5 else -1
        image_CHW = OPERATIONS[name](image_CHW, sign * strength / STRONGEST)
    return image_CHW
