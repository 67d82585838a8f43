"""Training grows an effective receptive field where the task needs context (Luo et al. 2016, section 4.2 and figure 5)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.models.lenses.erf import Effective, Stack, effective_field, measure

pytestmark = pytest.mark.usefixtures("one_thread")

DEPTH, WIDTH, SIDE = 10, 8, 33  # the theoretical field is 21 pixels wide
WIDE, NARROW = 8, 1


def scenes(count: int, radius: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images [B, 3, H, W] with bright and dark dots in noise, at each place whether more of those within `radius` pixels are bright
    [B, H, W], and where neither kind is more frequent.
    """
    places = (count, 1, SIDE, SIDE)
    sign = 2.0 * torch.randint(0, 2, places, generator=generator) - 1
    dots_B1HW = sign * (torch.rand(places, generator=generator) < 0.06)
    image_BCHW = dots_B1HW + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    away = torch.arange(-radius, radius + 1.0) ** 2
    disc = (away[:, None] + away <= radius**2).float()
    more_BHW = F.conv2d(dots_B1HW, disc[None, None], padding=radius)[:, 0]
    return image_BCHW, (more_BHW > 0).long(), more_BHW == 0


def trained(seed: int, steps: int, radius: int) -> tuple[Effective, float]:
    """The field of the middle unit of the last map, on images of its own, and the share of places that are classified rightly."""
    torch.manual_seed(seed)
    stack, head = Stack(DEPTH, width=WIDTH, between="relu", residual=True), nn.Conv2d(WIDTH, 2, 1)
    network, generator = nn.Sequential(stack, head), torch.Generator().manual_seed(100 + seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for _ in range(steps):
        image_BCHW, class_BHW, even_BHW = scenes(8, radius, generator)
        optimizer.zero_grad()
        F.cross_entropy(network(image_BCHW), class_BHW.masked_fill(even_BHW, -100)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)  # without norms, a large step now and then undoes all that was learnt
        optimizer.step()
    image_BCHW, class_BHW, even_BHW = scenes(16, radius, torch.Generator().manual_seed(1))
    with torch.inference_mode():
        right_BHW = network(image_BCHW).argmax(1) == class_BHW
    return measure(effective_field(stack.eval(), "", [image_BCHW]).field()), float(right_BHW[~even_BHW].float().mean())


def grows(seed: int, steps: int, radius: int = WIDE) -> tuple[float, float]:
    """σ and √area of the trained field over those of the same weights before."""
    (before, _), (after, right) = trained(seed, 0, radius), trained(seed, steps, radius)
    assert not steps or right > 0.75, "it has learnt the task"
    return after.sigma / before.sigma, after.side / before.side


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in (1, 2))])
def test_training_grows_the_field_where_the_task_needs_context(seed: int) -> None:
    """Discs of 17 pixels: both grow by a quarter and more, of which a tenth is asked for."""
    sigma, side = grows(seed, 200)
    assert sigma > 1.1 and side > 1.1


@pytest.mark.campaign
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_shrinks_it_where_the_task_needs_none(seed: int) -> None:
    """Discs of 3 pixels: it is the task that decides, not training as such."""
    sigma, side = grows(seed, 200, NARROW)
    assert sigma < 1 and side < 1


def test_without_training_nothing_grows() -> None:
    assert grows(0, 0) == (1.0, 1.0)
