"""The learning rate is a function of the step; layers and averages are what their definitions say, written out as plain loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import cos, pi, sqrt

import pytest
import timm
import torch
from torch import nn

from sightline.models.towers import build
from sightline.pipelines.train.optim import Ema, OptimConfig, adamw, depths, learning_rate, set_rate
from sightline.recipes import find_recipe

OPTIONS = OptimConfig(lr=1.0, warmup_steps=10)


def rates(options: OptimConfig, steps: int = 100) -> list[float]:
    return [learning_rate(options, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant", "inverse_sqrt"])
def test_every_schedule_warms_up_and_then_never_rises(schedule: str) -> None:
    found = rates(replace(OPTIONS, schedule=schedule))  # type: ignore[arg-type]
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(later <= earlier for earlier, later in pairwise(found[10:])) and min(found) > 0


def test_cosine_is_half_a_cosine() -> None:
    assert rates(OPTIONS)[10:] == pytest.approx([0.5 * (1 + cos(pi * step / 90)) for step in range(90)])


def test_wsd_stays_and_then_falls_over_the_cooldown() -> None:
    found = rates(replace(OPTIONS, schedule="wsd", cooldown=0.25))
    assert set(found[10:76]) == {1.0}
    assert found[75:] == pytest.approx([1 - sqrt(step / 25) for step in range(25)])


def test_inverse_sqrt_does_not_know_the_end() -> None:
    options = replace(OPTIONS, schedule="inverse_sqrt")
    assert rates(options, 100) == rates(options, 1000)[:100]
    assert learning_rate(options, 40, 1000) == pytest.approx(0.5)


def test_layers_of_a_vit_are_counted_as_beit_does() -> None:
    """Embeddings are layer 0, block i is layer i + 1, and what stands above the blocks is the last one."""
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    last = len(vit.blocks) + 1
    shell = nn.Module()
    shell.visual = vit
    for name, depth in depths(shell).items():
        part = name.split(".")[1:]
        if part[0] in ("cls_token", "pos_embed", "patch_embed"):
            layer = 0
        else:
            layer = int(part[1]) + 1 if part[0] == "blocks" else last
        assert depth == last - layer, name


@pytest.mark.parametrize(("tower", "stem"), [("visual", "conv1.weight"), ("text", "token_embedding.weight")])
def test_open_clips_towers_have_their_heads_on_top_and_their_embeddings_below(tower: str, stem: str) -> None:
    towers = build(find_recipe("clip_small").model)
    layers = len(getattr(towers, tower).transformer.resblocks)
    found = depths(towers)
    assert found[f"{tower}.{stem}"] == found[f"{tower}.positional_embedding"] == layers + 1
    assert [found[f"{tower}.transformer.resblocks.{i}.ln_1.weight"] for i in range(layers)] == list(range(layers, 0, -1))
    above = {"visual": "proj", "text": "text_projection"}[tower]
    assert found[f"{tower}.{above}"] == found["logit_scale"] == 0


def test_the_rate_of_a_layer_is_its_share() -> None:
    towers = build(find_recipe("clip_small").model)
    optimizer = adamw(towers, replace(OPTIONS, layer_decay=0.5))
    set_rate(optimizer, 0.8)
    names = {id(parameter): name for name, parameter in towers.named_parameters()}
    found = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert set(found) == set(names.values())
    assert all(found[name] == pytest.approx(0.8 * 0.5**depth) for name, depth in depths(towers).items())


def test_the_average_is_a_plain_loops() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    ema = Ema(module, 0.9)
    expected = {name: p.detach().clone().double() for name, p in module.named_parameters()}
    for step in range(120):
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.add_(torch.randn_like(p))
                decay = min(0.9, (1 + step) / (10 + step))
                expected[name] = decay * expected[name] + (1 - decay) * p.double()
        ema.update(module, step)
    live = {name: p.detach().clone() for name, p in module.named_parameters()}
    ema.store(module)
    for name, p in module.named_parameters():
        assert torch.allclose(p.double(), expected[name], atol=1e-5)
        assert not torch.allclose(p, live[name])
