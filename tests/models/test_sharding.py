"""FSDP2 over both towers gives the gradients that one process computes on the whole batch, in direction and scale."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from sightline.models.losses import Share
from sightline.models.objectives import Contrastive
from sightline.models.preprocess import Preprocess
from sightline.models.sharding import blocks, clip_gradients, grad_norm, reduce_replicated, shard
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig, build
from tests.processes import on_ranks

CAPTIONS = [
    "a red three",
    "a blue seven",
    "a red three",
    "two greens",
    "nothing",
    "a blue one",
    "red and blue",
    "a green one",
]
OBJECTIVE = Contrastive(
    equal_captions_are_no_negatives=True,
    word_groups=(("red", "blue", "green"), ("one", "three", "seven")),
    word_weight=0.7,
    unseen_pairs_are_no_negatives=True,
)
VIT = ModelConfig(
    embed_dim=16,
    vision={"image_size": 16, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    text={"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    preprocess=Preprocess(size=16),
)
CONV = ModelConfig(
    embed_dim=16,
    vision={"timm_model_name": "sightline_conv", "timm_pool": "avg", "timm_proj": "linear", "image_size": 16},
    text={"bag_of_words": True, "width": 16, "context_length": 12},
    preprocess=Preprocess(size=16),
)


def gradients_of(config: ModelConfig, sharded: bool) -> dict[str, Tensor]:
    """Every parameter's gradient of one global batch, this process holding its part of it if `sharded`."""
    torch.manual_seed(0)
    towers = build(config)
    image = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    world, group = (dist.get_world_size(), dist.group.WORLD) if sharded else (1, None)
    if sharded:
        shard(towers, init_device_mesh("cpu", (world,)), bf16=False)
    share = Share.of(8, group)
    own = share.own
    loss = OBJECTIVE.prepare(get_tokenizer(config.tokenizer, 12), share, lambda: CAPTIONS)(towers, image[own], CAPTIONS[own])
    loss.backward()
    reduce_replicated(towers, group)
    found = {"norm": grad_norm(towers, group)}
    for name, parameter in towers.named_parameters():
        grad = parameter.grad
        assert grad is not None, name
        found[name] = (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone()
    clip_gradients(towers, group, 0.1)
    return found | {"clipped_norm": grad_norm(towers, group)}


def gradients_of_both() -> list[dict[str, Tensor]]:
    return [gradients_of(config, True) for config in (VIT, CONV)]


@pytest.mark.parametrize("world", [1, 2])
def test_sharded_gradients_equal_one_process(world: int, tmp_path: Path) -> None:
    wanted = [gradients_of(config, False) for config in (VIT, CONV)]
    for found in on_ranks(world, tmp_path, gradients_of_both):
        for got, want in zip(found, wanted, strict=True):
            assert got.keys() == want.keys()
            for name in want:
                error = (got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-12)
                assert error < 1e-5, f"{name}: relative error {error:.2g}"
    assert all(float(want["clipped_norm"]) == pytest.approx(0.1, rel=1e-4) for want in wanted)


def test_blocks_of_both_towers_are_found() -> None:
    assert len(blocks(build(VIT))) == 4
    assert len(blocks(build(CONV))) == 5  # four residual blocks, and the bag of words as a whole
