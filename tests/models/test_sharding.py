"""FSDP2 over both towers gives the gradients that one process computes on the whole batch, in direction and scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sightline.models.losses import Share
from sightline.models.objectives import Contrastive, Targets
from sightline.models.preprocess import Preprocess
from sightline.models.sharding import (
    Strategy,
    blocks,
    check_fits,
    choose,
    clip_gradients,
    grad_norm,
    make_mesh,
    reduce_replicated,
    shard,
)
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig, build
from tests.processes import on_ranks, whole_gradients

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
SIGLIP = replace(VIT, init_logit_bias=-10.0)
CONV = ModelConfig(
    embed_dim=16,
    vision={"timm_model_name": "sightline_conv", "timm_pool": "avg", "timm_proj": "linear", "image_size": 16},
    text={"bag_of_words": True, "width": 16, "context_length": 12},
    preprocess=Preprocess(size=16),
)


def gradients_of(
    config: ModelConfig, objective: Contrastive, strategy: Strategy | None, *, bf16: bool = False
) -> dict[str, Tensor]:
    """The loss and every parameter's gradient of one global batch; without a strategy this process holds all of it."""
    torch.manual_seed(0)
    towers = build(config)
    image = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    group = dist.group.WORLD if strategy else None
    if strategy:
        shard(towers, make_mesh(strategy, "cpu", dist.get_world_size(), max(1, dist.get_world_size() // 2)), bf16=bf16)
    share = Share.of(8, group)
    run = objective.prepare(get_tokenizer(config.tokenizer, 12), share, lambda: CAPTIONS)
    loss = run(towers, image[share.own], Targets(CAPTIONS[share.own]), lambda first: None)
    if group:
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    reduce_replicated(towers, group)
    found = {"loss": loss, "norm": grad_norm(towers), **whole_gradients(towers)}
    assert len(found) == 2 + len(list(towers.parameters()))
    clip_gradients(towers, 0.1)
    return found | {"clipped_norm": grad_norm(towers)}


CASES = {"vit": (VIT, OBJECTIVE), "conv": (CONV, OBJECTIVE), "siglip": (SIGLIP, Contrastive(loss="sigmoid"))}


def gradients_of_all() -> dict[tuple[str, str], dict[str, Tensor]]:
    return {(name, kind): gradients_of(*CASES[name], kind) for name in CASES for kind in get_args(Strategy)}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_sharded_gradients_equal_one_process(world: int, tmp_path: Path) -> None:
    """{InfoNCE, SigLIP} x {DDP, FSDP, HSDP}; four workers are two machines of two."""
    wanted = {name: gradients_of(*case, None) for name, case in CASES.items()}
    for found in on_ranks(world, tmp_path, gradients_of_all):
        for (case, strategy), got in found.items():
            want = wanted[case]
            assert got.keys() == want.keys()
            for name in want:
                error = (got[name] - want[name]).norm() / want[name].norm().clamp(min=1e-12)
                assert error < 1e-5, f"{case}, {strategy}, {name}: relative error {error:.2g}"
    assert all(float(want["clipped_norm"]) == pytest.approx(0.1, rel=1e-4) for want in wanted.values())


def half_precision() -> dict[str, tuple[set[torch.dtype], dict[str, Tensor]]]:
    """By case, in which types attention and convolutions computed, and the gradients."""
    seen: set[torch.dtype] = set()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.MultiheadAttention | nn.Conv2d):
            seen.add(inputs[0].dtype)

    handle = nn.modules.module.register_module_forward_hook(note)
    found = {}
    for name in CASES:
        seen.clear()
        gradients = gradients_of(*CASES[name], "fsdp", bf16=True)
        found[name] = set(seen), gradients
    handle.remove()
    return found


def test_in_bf16_the_towers_alone_are_rounded(tmp_path: Path) -> None:
    """Loss, reduction, gradients and the scale stay in float32; all are close to those of float32."""
    wanted = {name: gradients_of(*case, None) for name, case in CASES.items()}
    for ranks in on_ranks(2, tmp_path, half_precision):
        for name, (types, got) in ranks.items():
            want = wanted[name]
            assert types == {torch.bfloat16} and {tensor.dtype for tensor in got.values()} == {torch.float32}
            assert float(got["loss"]) == pytest.approx(float(want["loss"]), rel=1e-2)
            whole, exact = (torch.cat([found[key].flatten() for key in want if "norm" not in key]) for found in (got, want))
            assert (whole - exact).norm() < 0.05 * exact.norm(), name


@pytest.mark.parametrize(
    ("memory", "world", "per_machine", "chosen"),
    [(64e9, 8, 8, "ddp"), (63e9, 8, 8, "fsdp"), (63e9, 16, 8, "hsdp"), (1e9, 16, 8, "fsdp"), (63e9, 12, 8, "fsdp")],
)
def test_the_strategy_goes_by_memory(memory: float, world: int, per_machine: int, chosen: str) -> None:
    """A billion parameters: 16 GB of state, which needs four times as much to count as small."""
    strategy, reason = choose(10**9, int(memory), world, per_machine)
    assert strategy == chosen and "16 GB" in reason


def test_what_cannot_fit_is_refused_with_the_workers_that_it_takes() -> None:
    check_fits(10**9, int(8e9), 2)
    with pytest.raises(
        ValueError, match=r"16 GB of .* do not fit 2 workers of 5 GB; give at least 4 such workers and --strategy fsdp"
    ):
        check_fits(10**9, int(5e9), 2)


def test_blocks_of_both_towers_are_found() -> None:
    assert len(blocks(build(VIT))) == 4
    assert len(blocks(build(CONV))) == 5  # four residual blocks, and the bag of words as a whole
