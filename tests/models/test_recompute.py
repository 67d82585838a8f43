"""Activations computed again give the same bits, with dropout too; compiled blocks give the same numbers up to rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

from sightline.models.sharding import make_mesh, shard
from sightline.models.towers import build
from sightline.recipes import find_recipe
from tests.processes import on_ranks, whole_gradients


def gradients(recompute: bool, compiled: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Of all parameters; and how many graphs torch compiled."""
    config = find_recipe("clip_small").model
    vision = dict(config.vision) | {"layers": 1, "width": 32, "head_width": 16, "patch_dropout": 0.5}
    config = replace(config, vision=vision, text=dict(config.text) | {"layers": 1, "width": 32, "heads": 2})
    torch.manual_seed(0)
    towers = build(config).train()
    shard(towers, make_mesh("fsdp", "cpu", 1, 1), bf16=False, recompute=recompute, compiled=compiled)
    torch.manual_seed(1)
    size = config.vision["image_size"]
    image_bD, text_bD, *_ = towers(torch.rand(4, 3, size, size), torch.randint(1, 400, (4, config.context_length)))
    (F.normalize(image_bD, dim=-1) @ F.normalize(text_bD, dim=-1).T).square().sum().backward()
    return whole_gradients(towers), counters["stats"]["unique_graphs"]


def test_recomputed_blocks_give_the_same_bits(tmp_path: Path) -> None:
    ((plain, _),) = on_ranks(1, tmp_path / "plain", gradients, False, False)
    ((again, _),) = on_ranks(1, tmp_path / "again", gradients, True, False)
    assert plain.keys() == again.keys() and len(plain) > 15
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


@pytest.mark.campaign
def test_compiled_blocks_give_the_same_numbers(tmp_path: Path) -> None:
    ((plain, none),) = on_ranks(1, tmp_path / "plain", gradients, False, False)
    ((compiled, graphs),) = on_ranks(1, tmp_path / "compiled", gradients, True, True)
    assert none == 0 and graphs > 0
    assert {name.replace("_orig_mod.", "") for name in compiled} == plain.keys()
    for name, gradient in plain.items():
        assert torch.allclose(gradient, compiled[name], atol=1e-5 * float(gradient.abs().max() + 1e-6)), name
