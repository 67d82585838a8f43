"""A CCT costs what its authors publish, pools by an attention of its tokens, and fits where a ViT does."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from sightline.models.cct import SequencePool
from sightline.models.classifier import Classifier
from sightline.models.flops import count
from sightline.models.sharding import block_names
from sightline.models.towers import build
from sightline.recipes.inductive import inductive_cct, inductive_hybrid, inductive_vit

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"embed_dim": 128, "num_heads": 2, "mlp_ratio": 1.0}
LARGE = {"embed_dim": 256, "num_heads": 4, "mlp_ratio": 2.0}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "layers", "sizes", "millions", "giga_macs"),
    [(2, 2, SMALL, 0.284, 0.033), (4, 2, SMALL, 0.482, 0.046), (7, 2, LARGE, 3.853, 0.275), (7, 1, LARGE, 3.760, 0.947)],
)
def test_sizes_are_those_that_the_authors_publish(
    depth: int, layers: int, sizes: dict[str, Any], millions: float, giga_macs: float
) -> None:
    """Their README's table for CIFAR-10; their multiply-adds leave out the two products of attention."""
    with torch.device("meta"):
        model = timm.create_model("sightline_cct", num_classes=10, depth=depth, conv_layers=layers, **sizes).eval()
        found = count(model, torch.empty(1, 3, 32, 32)) / 2
    tokens = model.patch_embed.num_patches
    assert tokens == (16 // 2 ** (layers - 1)) ** 2
    assert parameters(model) / 1e6 == pytest.approx(millions, rel=0.002)
    assert (found - depth * 2 * tokens**2 * sizes["embed_dim"]) / 1e9 == pytest.approx(giga_macs, rel=0.02)


@torch.no_grad()
def test_pooling_is_a_mean_by_softmax() -> None:
    torch.manual_seed(0)
    pool, x_BND = SequencePool(6), torch.randn(2, 5, 6)
    rows = []
    for x_ND in x_BND:
        weights = [float(torch.exp(pool.weigh.weight[0] @ x_D + pool.weigh.bias[0])) for x_D in x_ND]
        rows.append(sum(weight * x_D for weight, x_D in zip(weights, x_ND, strict=True)) / sum(weights))
    torch.testing.assert_close(pool(x_BND), torch.stack(rows))


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    model = timm.create_model("sightline_cct", num_classes=5, depth=2, conv_layers=2, **SMALL)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_it_is_a_backbone_of_our_classifier_at_any_size() -> None:
    options = {"timm_model_name": "sightline_cct", "depth": 2, "conv_layers": 3, **SMALL}
    network: Any = Classifier(options, size=64, classes=10, hidden=0)
    assert network.visual.trunk.pos_embed.shape == (1, 64, 128)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    assert block_names(network) == ["visual.trunk.blocks.0", "visual.trunk.blocks.1"]


def test_the_three_that_are_compared_cost_the_same() -> None:
    """Multiply-adds of an image, within 2 % of 50.2 million; and each sees it as 64 tokens."""
    for recipe in (inductive_vit, inductive_hybrid, inductive_cct):
        with torch.device("meta"):
            network = build(recipe().model).eval()
            assert count(network, torch.empty(1, 3, 64, 64)) / 2e6 == pytest.approx(50.2, rel=0.021)
        assert network.visual.trunk.patch_embed.num_patches == 64
