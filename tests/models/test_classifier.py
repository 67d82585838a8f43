"""A classifier's gradient is the one of a plain loop over the whole batch, at any world size and in parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from torch import Tensor

from sightline.models.classifier import Classifier, has_batch_norms
from sightline.models.losses import Share
from sightline.models.objectives import Classification, Targets
from sightline.models.preprocess import Preprocess
from sightline.models.sharding import block_names, make_mesh, shard
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig, build
from tests.processes import on_ranks, whole_gradients

SMOOTHING = 0.1
BACKBONES: dict[str, dict[str, Any]] = {
    "vit": {"timm_model_name": "test_vit"},
    "swin": {
        "timm_model_name": "swin_tiny_patch4_window7_224",
        "embed_dim": 16,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
        "drop_path_rate": 0.0,
    },
    "convnext": {"timm_model_name": "test_convnext"},
    "resnet": {"timm_model_name": "test_resnet"},
}


def config_of(name: str, hidden: int = 0, size: int = 32, classes: int = 3) -> ModelConfig:
    """A ResNet is as if it started from weights: its batch norms are constants."""
    return ModelConfig(
        embed_dim=hidden,
        vision=BACKBONES[name],
        text={},
        preprocess=Preprocess(size=size),
        pretrained_image="some.safetensors" if name == "resnet" else "",
        classes=tuple("abcdefghij"[:classes]),
    )


def model_of(config: ModelConfig) -> Classifier:
    torch.manual_seed(0)
    model: Classifier = build(config)
    torch.nn.init.normal_(model.visual.head.proj.weight, std=0.1)  # a head at zero sends nothing back
    return model


def batch() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 32, 32, generator=random), torch.rand(8, 3, generator=random).softmax(1)


def sharded_gradients(at_once: int | None) -> dict[str, dict[str, Tensor]]:
    """Every backbone's gradients of this rank's share, and the mean loss."""
    found = {}
    for name in BACKBONES:
        model = shard(model_of(config_of(name, hidden=12)), make_mesh("fsdp", "cpu", dist.get_world_size(), 1), bf16=False)
        share = Share.of(8, dist.group.WORLD)
        run = Classification(label_smoothing=SMOOTHING).prepare(
            get_tokenizer("open_clip/bpe_simple_vocab_16e6", 8), share, list, at_once
        )
        images, labels = batch()
        loss = run(model, images[share.own], Targets([""] * 8, labels[share.own]), lambda first: None)
        dist.all_reduce(loss)
        found[name] = {"loss": loss / dist.get_world_size()}
        found[name] |= whole_gradients(model)
        assert len(found[name]) == 1 + len(list(model.parameters()))
    return found


@pytest.mark.parametrize(
    ("world", "at_once"), [(1, None), (2, 2), *(pytest.param(world, None, marks=pytest.mark.campaign) for world in (2, 3))]
)
def test_gradients_are_those_of_one_plain_loop(world: int, at_once: int | None, tmp_path: Path) -> None:
    """Three workers have unequally many of the eight rows."""
    per_rank = on_ranks(world, tmp_path, sharded_gradients, at_once)
    images, labels = batch()
    for name in BACKBONES:
        model = model_of(config_of(name, hidden=12))
        loss = torch.zeros(())
        for image, label in zip(images, labels, strict=True):
            target = (1 - SMOOTHING) * label + SMOOTHING / 3
            loss = loss - (target * model(image[None])[0].log_softmax(0)).sum() / 8
        loss.backward()
        for found in per_rank:
            assert float(found[name]["loss"]) == pytest.approx(loss.item(), rel=1e-5), name
            for key, parameter in model.named_parameters():
                assert parameter.grad is not None
                error = (found[name][key] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-12)
                assert error < 1e-5, f"{name}, {key}: {error:.2g}"


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("hidden", [0, 12])
def test_it_is_timms_backbone_and_a_head(name: str, hidden: int) -> None:
    model = model_of(config_of(name, hidden)).eval()
    images, _ = batch()
    features = model.visual.trunk(images)
    if hidden:
        features = torch.tanh(features @ model.visual.head.hidden.weight.T + model.visual.head.hidden.bias)
    torch.testing.assert_close(model(images), features @ model.visual.head.proj.weight.T + model.visual.head.proj.bias)
    assert all(key.startswith(("visual.trunk.", "visual.head.")) for key in model.state_dict())


def test_the_last_layer_starts_at_zero_and_the_resolution_is_the_preprocessings() -> None:
    model: Classifier = build(config_of("vit", size=64))
    assert not model(torch.randn(2, 3, 64, 64)).any()
    assert model.visual.trunk.patch_embed.img_size == (64, 64)


def test_batch_norms_are_constants_where_weights_are_given() -> None:
    random = ModelConfig(embed_dim=0, vision=BACKBONES["resnet"], text={}, preprocess=Preprocess(size=32), classes=("a", "b"))
    assert has_batch_norms(build(random))
    model = model_of(config_of("resnet")).train()
    images, _ = batch()
    assert not has_batch_norms(model)
    torch.testing.assert_close(model(images)[:2], model(images[:2]))


def test_every_backbone_has_blocks() -> None:
    found = {name: len(block_names(build(config_of(name)))) for name in BACKBONES}
    assert found == {"vit": 6, "swin": 2, "convnext": 4, "resnet": 4}
    with torch.device("meta"):
        hybrid = timm.create_model("vit_base_r50_s16_224")
    names = block_names(hybrid)
    assert names[0] == "patch_embed.backbone.stages.0" and names[-1] == "blocks.11" and len(names) == 15


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "vit_bas_patch16_224"}, "vit_base_patch16_224"),
        ({"width": 8}, "model.vision.timm_model_name="),
        ({"timm_model_name": "test_vit", "colour": 3}, "cannot build test_vit"),
        ({"timm_model_name": "test_vit", "depth": "x"}, "cannot build test_vit"),
    ],
)
def test_an_unknown_backbone_or_option_is_refused(vision: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(ModelConfig(embed_dim=0, vision=vision, text={}, preprocess=Preprocess(size=32), classes=("a", "b")))
