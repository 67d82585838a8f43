"""GradCache gives the gradient of the whole batch, also with random towers and on several ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sightline.models.losses import Share
from sightline.models.objectives import Contrastive, Targets
from sightline.models.sharding import make_mesh, reduce_replicated, shard
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig, build
from tests.models.test_sharding import CAPTIONS, VIT
from tests.processes import on_ranks, whole_gradients

B = 16
CONFIG = replace(VIT, vision={**VIT.vision, "image_size": 32, "patch_dropout": 0.5})
TEXTS = [f"{caption} {number}" for number, caption in enumerate(CAPTIONS * 2)]


def seed(first: int) -> None:
    torch.manual_seed(1000 + first)


def images() -> Tensor:
    return torch.rand(B, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def plain(config: ModelConfig, at_once: int, *, replay: bool = True) -> dict[str, Tensor]:
    """One big graph over all parts, drawn as GradCache draws them, under torch's own cross-entropy."""
    torch.manual_seed(0)
    towers = build(config)
    tokens = get_tokenizer(config.tokenizer, 12)(TEXTS)
    outputs = []
    for start in range(0, B, at_once):
        seed(start if replay else start + 1)
        outputs.append(towers(images()[start : start + at_once], tokens[start : start + at_once])[:2])
    image, text = (F.normalize(torch.cat(output), dim=-1) for output in zip(*outputs, strict=True))
    logits = towers.logit_scale.exp() * image @ text.T
    target = torch.arange(B)
    ((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2).backward()
    return {name: parameter.grad for name, parameter in towers.named_parameters() if parameter.grad is not None}


def cached(config: ModelConfig, at_once: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    towers = build(config)
    group = dist.group.WORLD if dist.is_initialized() else None
    if group:
        shard(towers, make_mesh("fsdp", "cpu", dist.get_world_size(), 1), bf16=False)
    share = Share.of(B, group)
    run = Contrastive().prepare(get_tokenizer(config.tokenizer, 12), share, lambda: TEXTS, at_once)
    run(towers, images()[share.own], Targets(TEXTS[share.own]), seed)
    reduce_replicated(towers, group)
    return whole_gradients(towers)


def worst(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    assert found.keys() == wanted.keys()
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-12)) for name in wanted)


@pytest.mark.parametrize("at_once", [1, 4, 8, 16])
def test_parts_give_the_gradient_of_one_graph(at_once: int) -> None:
    assert worst(cached(CONFIG, at_once), plain(CONFIG, at_once)) < 1e-5


def test_the_draws_matter() -> None:
    """So the test above would notice a part that drew anew."""
    assert worst(cached(CONFIG, 4), plain(CONFIG, 4, replay=False)) > 1e-2


def test_ranks_together_give_it_too(tmp_path: Path) -> None:
    """Two ranks of two parts each draw for the same places as one process with four parts."""
    for found in on_ranks(2, tmp_path, cached, CONFIG, 4):
        assert worst(found, plain(CONFIG, 4)) < 1e-5


def test_uneven_ranks_have_equally_many_parts() -> None:
    for total, world, at_once in [(17, 2, 4), (9, 2, 1), (16, 3, 2), (7, 7, 5)]:
        counts = (
            Share.of(total).counts if world == 1 else tuple((r + 1) * total // world - r * total // world for r in range(world))
        )
        bounds = [Share(counts, rank).parts(at_once) for rank in range(world)]
        assert len({len(own) for own in bounds}) == 1
        assert all(own[0] == 0 and own[-1] == count and sorted(set(own)) == own for own, count in zip(bounds, counts, strict=True))
