"""The effective receptive field: how much each pixel in fact changes a unit (Luo, Li, Urtasun and Zemel 2016).

A unit gradient at the middle of a layer goes back to the pixels. Over images and over random weights it has no sign of its own, so
its size at a pixel is the root of its mean square there, summed over colours: the paper's standard deviation (section 2.2). Three
numbers say how large it is:

    width     a Gaussian's σ, fitted to the field by least squares, with R² for how good a Gaussian it is
    area      how many pixels have more than a share of the largest value; the paper's share is 1 − 95.45 %, and its ERF is √area
    ratio     ERF over the theoretical field's side

`Stack` is the paper's own subject: n convolutions, one after another, on an image that their theoretical field just covers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import curve_fit
from torch import Tensor, nn

from sightline.models.lenses.receptive_field import unit_gradient

SHARE = 1 - 0.9545  # "1 − erf" of two standard deviations: section 3
Weights = Literal["uniform", "random"]
Between = Literal["linear", "relu", "tanh"]


@dataclass(frozen=True)
class Effective:
    """A field's size.

    Attributes:
        field_HW: the mean gradient's size by the pixels, largest value 1.
        centre: of the fitted Gaussian, (y, x) in pixels.
        sigma: its width in pixels.
        r2: the share of the field's variance that the Gaussian explains.
        area: pixels above `SHARE` of the largest value.
    """

    field_HW: NDArray[np.float64]
    centre: tuple[float, float]
    sigma: float
    r2: float
    area: int

    @property
    def side(self) -> float:
        """√area, the paper's ERF size in pixels."""
        return float(self.area**0.5)


@dataclass
class Sum:
    """The squares of gradients as they come, float64, and how many there were."""

    squares_HW: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    count: int = 0

    def add(self, gradient_BCHW: Tensor) -> None:
        """Raises:
        ValueError: the gradients are of another size than those before.
        """
        squares_HW = gradient_BCHW.double().square().sum((0, 1))
        if self.count and self.squares_HW.shape != squares_HW.shape:
            raise ValueError(f"gradients of {tuple(self.squares_HW.shape)} and {tuple(squares_HW.shape)} pixels cannot be averaged")
        self.squares_HW = self.squares_HW + squares_HW if self.count else squares_HW
        self.count += len(gradient_BCHW)

    def field(self) -> NDArray[np.float64]:
        """[H, W], the largest value 1.

        Raises:
            ValueError: nothing was added, or the unit depends on no pixel.
        """
        if not self.count or not float(self.squares_HW.max()) > 0:
            raise ValueError("the unit's gradient is zero at every pixel; choose another layer")
        field_HW = (self.squares_HW / self.count).sqrt()
        scaled: NDArray[np.float64] = (field_HW / field_HW.max()).numpy()
        return scaled


def effective_field(tower: nn.Module, layer: str, batches: Iterable[Tensor], found: Sum | None = None) -> Sum:
    """Add the field of a layer's middle unit over batches of normalised images [B, 3, H, W].

    Args:
        found: what to add to, of other seeds or images.

    Raises:
        ValueError: there is no such layer, or it has no places.
    """
    found = found or Sum()
    for image_BCHW in batches:
        found.add(unit_gradient(tower, layer, image_BCHW)[0])
    return found


def measure(field_HW: NDArray[np.float64]) -> Effective:
    """The size of a field, whose largest value is 1.

    Raises:
        ValueError: no Gaussian can be fitted to it.
    """
    height, width = field_HW.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)

    def gaussian(_: object, peak: float, cy: float, cx: float, sigma: float) -> NDArray[np.float64]:
        return (peak * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * sigma**2))).ravel()

    mass = field_HW**2 / (field_HW**2).sum()
    cy, cx = float((mass * y).sum()), float((mass * x).sum())
    spread = float(np.sqrt((mass * ((y - cy) ** 2 + (x - cx) ** 2)).sum()))  # of the squares, in two dimensions: σ of the root
    bounds = ([0, -1, -1, 1e-3], [10, height, width, 10 * (height + width)])
    variance = float(((field_HW - field_HW.mean()) ** 2).sum())
    try:
        best, _ = curve_fit(gaussian, None, field_HW.ravel(), p0=(1.0, cy, cx, max(0.5, spread)), bounds=bounds)
    except RuntimeError as error:
        raise ValueError(f"no Gaussian fits this field: {error}") from error
    left = float(((field_HW.ravel() - gaussian(None, *best)) ** 2).sum())
    r2 = 1 - left / variance if variance else 0.0
    return Effective(field_HW, (float(best[1]), float(best[2])), float(best[3]), r2, int((field_HW > SHARE).sum()))


class Stack(nn.Module):
    """`depth` convolutions of one width; the theoretical field is `field` = depth · (kernel − 1) + 1 pixels.

    Args:
        weights: `uniform`: all equal, as the paper's analysis has them; `random`: Gaussian, by torch's current generator.
        between: what stands after each convolution but the last.
        residual: what each convolution but the first was given is added to what it makes.
    """

    def __init__(
        self,
        depth: int,
        kernel: int = 3,
        *,
        width: int = 1,
        weights: Weights = "random",
        between: Between = "linear",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.residual, self.between = residual, {"linear": nn.Identity(), "relu": nn.ReLU(), "tanh": nn.Tanh()}[between]
        self.field = depth * (kernel - 1) + 1
        padding = kernel // 2
        channels = [3, *[width] * depth]
        self.layers = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], kernel, padding=padding, bias=False) for i in range(depth)
        )
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            taps = layer.weight[0].numel()
            if weights == "uniform":
                nn.init.constant_(layer.weight, 1 / taps)
            else:  # He's variance keeps the signal, and halves through a ReLU are made up for
                nn.init.normal_(layer.weight, std=((2 if between == "relu" else 1) / taps) ** 0.5)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        seen = image_BCHW
        for i, layer in enumerate(self.layers):
            made = layer(seen if i == 0 else self.between(seen))
            seen = seen + made if self.residual and made.shape == seen.shape else made
        return seen


def stack_field(seeds: Iterable[int], depth: int, **how: object) -> Sum:
    """The field of a `Stack`'s output over seeds, each of the weights and of an image of noise."""
    found = Sum()
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        stack = Stack(depth, **how).eval()  # type: ignore[arg-type]
        image = torch.randn(1, 3, stack.field + 2, stack.field + 2, generator=generator)
        found.add(unit_gradient(stack, "", image)[0])
    return found
