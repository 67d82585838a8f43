"""The claims of Luo, Li, Urtasun and Zemel 2016 about effective receptive fields, each with its tolerance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sightline.models.lenses.erf import Effective, Stack, Sum, measure, stack_field
from sightline.models.lenses.receptive_field import field_of, support, unit_gradient

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTHS = (5, 10, 20, 40)


def field_at(depth: int, seeds: int = 24, **how: Any) -> Effective:
    return measure(stack_field(range(seeds), depth, width=8, **how).field())


def test_a_field_of_uniform_weights_is_the_kernel_convolved_with_itself() -> None:
    """Equation 2: the field of n uniform layers is the n-fold convolution of a box."""
    found = stack_field([0], 6, weights="uniform").field()
    box = np.ones(1)
    for _ in range(6):
        box = np.convolve(box, np.ones(3) / 3)
    wanted = np.zeros_like(found)
    wanted[1:-1, 1:-1] = np.outer(box, box) / box.max() ** 2  # the image is a pixel larger on each side
    assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("how", [{"weights": "uniform", "seeds": 1}, {}, {"between": "relu"}, {"between": "tanh"}])
def test_fields_are_nearly_gaussian(how: dict[str, Any]) -> None:
    """Section 2.4: by the central limit theorem, of width √(n (k² − 1) / 12) in the squares, √2 times that in the field itself."""
    found = field_at(20, **how)
    width = (20 * 8 / 12) ** 0.5 * (1.0 if how.get("weights") == "uniform" else 2**0.5)
    assert found.r2 > 0.95
    assert found.sigma == pytest.approx(width, rel=0.06)


@pytest.mark.parametrize("how", [{"weights": "uniform", "seeds": 1}, {}, {"between": "relu"}, {"residual": True}])
def test_its_share_of_the_theoretical_field_falls_as_one_over_the_root_of_depth(how: dict[str, Any]) -> None:
    """Section 2.5 and figure 2: slope −0.5 on logarithmic axes, here ± 0.1 over depths 5 to 40."""
    shares = [field_at(depth, **how).side / (2 * depth + 1) for depth in DEPTHS]
    slope = np.polyfit(np.log(DEPTHS), np.log(shares), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


def test_uniform_weights_and_shortcuts_see_less_than_random_ones() -> None:
    """Figure 1 (uniform is sharper) and section 2.6 (skip connections make the field smaller)."""
    random = field_at(20).sigma
    assert field_at(20, seeds=1, weights="uniform").sigma < 0.8 * random
    assert field_at(20, residual=True).sigma < 0.8 * random


def test_the_field_stays_within_the_theoretical_one() -> None:
    torch.manual_seed(0)
    stack = Stack(4, width=4).eval()
    gradient, unit, _ = unit_gradient(stack, "layers.3", torch.randn(1, 3, 21, 21))
    assert support(gradient) == field_of(stack, "layers.3").box(unit, (21, 21)) and stack.field == 9


def gaussian(sigma: float, centre: tuple[float, float]) -> NDArray[np.float64]:
    y, x = np.mgrid[:41, :61]
    return np.exp(-((y - centre[0]) ** 2 + (x - centre[1]) ** 2) / (2 * sigma**2)).astype(np.float64)


@pytest.mark.parametrize("sigma", [1.5, 4.0, 9.0])
def test_a_gaussian_is_measured_as_itself(sigma: float) -> None:
    found = measure(gaussian(sigma, (20, 31)))
    assert found.sigma == pytest.approx(sigma, rel=1e-4) and found.r2 > 1 - 1e-9
    assert found.centre == pytest.approx((20, 31), abs=1e-3)
    if sigma < 6:  # it lies within the image: e^(−r²/2σ²) > 0.0455
        assert found.area == pytest.approx(np.pi * 2 * sigma**2 * -np.log(0.0455), rel=0.05)


def test_sums_do_not_care_how_gradients_come() -> None:
    gradients = torch.randn(6, 3, 5, 5)
    whole, parts = Sum(), Sum()
    whole.add(gradients)
    for part in gradients.split(2):
        parts.add(part)
    assert np.allclose(whole.field(), parts.field())
    wanted = gradients.double().square().sum(1).mean(0).sqrt()
    assert np.allclose(whole.field(), (wanted / wanted.max()).numpy())


def test_what_cannot_be_summed_is_refused() -> None:
    with pytest.raises(ValueError, match="zero at every pixel"):
        Sum().field()
    found = Sum()
    found.add(torch.ones(1, 3, 4, 4))
    with pytest.raises(ValueError, match="averaged"):
        found.add(torch.ones(1, 3, 5, 5))
