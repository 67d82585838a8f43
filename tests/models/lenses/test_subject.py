"""Whatever training of ours leaves behind, a lens looks at its image tower: with its own weights, or with random ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sightline.models.artifact import Artifact, write
from sightline.models.lenses.attention import attentions
from sightline.models.lenses.receptive_field import field_of, support, unit_gradient
from sightline.models.lenses.subject import DoesNotApply, load_subject
from sightline.models.lseg import DenseHead
from sightline.models.nonlocal_block import NAME
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from tests.models.conftest import CONV

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 64
CLASSES = ("cat", "dog", "newt")
Write = Callable[[ModelConfig], tuple[Path, Any]]


def classifier(architecture: str, **options: Any) -> ModelConfig:
    vision = {"timm_model_name": architecture} | options
    return ModelConfig(embed_dim=0, vision=vision, text={}, preprocess=Preprocess(size=SIZE), classes=CLASSES)


LADDER = classifier("sightline_ladder", rung=12, scale=0.0625, batch_norm=False, depths=(1, 1, 1, 1))
CCT = classifier("sightline_cct", embed_dim=32, conv_layers=3, conv_width=8, depth=2, num_heads=2)
VIT = classifier("test_vit")
RESNET = classifier("test_resnet")
KINDS = {
    "ladder": LADDER,
    "CCT": CCT,
    "ViT": VIT,
    "non-local": replace(RESNET, vision={**RESNET.vision, "nonlocal": "stage3:1"}),
    "predictor": replace(CONV, text={"predicts": "words", "context_length": 12}),
    "segmenter": replace(CONV, dense=DenseHead(taps=(1,), widths=(8,))),
}


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """An artifact of a configuration in a run, and its network; no weight is zero, as after training."""

    def write_it(config: ModelConfig) -> tuple[Path, nn.Module]:
        torch.manual_seed(0)
        network = build(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        write(tmp_path / "run" / "artifact", Artifact("tiny-0123", config, CLASSES, {}), network.state_dict(), ["a cat", "a dog"])
        return tmp_path / "run", network

    return write_it


def images(config: ModelConfig) -> Tensor:
    return torch.randn(2, 3, config.preprocess.size, config.preprocess.size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_tower_is_that_of_the_artifact(kind: str, written: Write) -> None:
    run, network = written(KINDS[kind])
    subject = load_subject(str(run))
    assert subject.name == "tiny-0123" and subject.preprocess == KINDS[kind].preprocess
    image_BCHW = images(KINDS[kind])
    with torch.inference_mode():
        torch.testing.assert_close(network.visual.head(subject.tower(image_BCHW)), network.visual(image_BCHW))
    assert subject.clip is None  # a decoder's places are compared with texts, and never the tower's own output
    assert (subject.classifier is not None) == (kind not in ("predictor", "segmenter"))


def test_the_tower_of_a_dual_encoder_has_it_whole(artifact: Path) -> None:
    subject = load_subject(str(artifact))
    assert subject.clip is not None and subject.tower is subject.clip.towers.visual.trunk


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_weights_that_training_would_have_begun_with(kind: str, written: Write) -> None:
    """Only what is all but zero is another: gains are 1, and the last map of a non-local block is drawn."""
    run, trained = written(KINDS[kind])
    torch.manual_seed(5)
    wanted = build(KINDS[kind]).visual.trunk.state_dict()
    found, again, other = (load_subject(str(run), seed=seed).tower.state_dict() for seed in (5, 5, 6))
    opened = {name for name, tensor in found.items() if not torch.equal(tensor, wanted[name])}
    assert all(not wanted[name].abs().max() > 1e-3 and bool(found[name].any()) for name in opened)
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in found.items())
    assert any(not torch.equal(tensor, trained.visual.trunk.state_dict()[name]) for name, tensor in found.items())


def test_batch_norms_that_given_weights_would_freeze_are_opened_too(written: Write) -> None:
    run, _ = written(replace(RESNET, pretrained_image="somewhere"))
    gains = [tensor for name, tensor in load_subject(str(run), seed=0).tower.state_dict().items() if name.endswith("bn2.weight")]
    assert gains and all(bool((gain == 1).all()) for gain in gains)


@pytest.mark.parametrize("rung", [0, 12])
def test_a_random_non_local_block_sees_the_whole_image(rung: int, written: Write) -> None:
    """Whether what begins at zero is a batch norm's gain or, without batch norms, the last map; the branch before sees little."""
    plain = classifier("sightline_ladder", rung=rung, scale=0.0625, depths=(1, 1, 1, 1))
    run, _ = written(replace(plain, vision={**plain.vision, "nonlocal": "stage1:1"}, preprocess=Preprocess(size=96)))
    tower = load_subject(str(run), seed=0).tower
    image_BCHW = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    block = next(name.removesuffix(f".{NAME}") for name, _ in tower.named_modules() if name.endswith(NAME))
    assert support(unit_gradient(tower, block, image_BCHW)[0]) == (0, 0, 96, 96)
    without = support(unit_gradient(tower, f"{block}.branch", image_BCHW)[0])
    assert without is not None and max(without[2] - without[0], without[3] - without[1]) < 48
    with pytest.raises(DoesNotApply):
        field_of(tower, block)


def test_attention_is_that_of_transformers_alone(written: Write, tmp_path: Path) -> None:
    """The tokens of a CCT are 8 pixels apart here, and the query that pools them is no attention module."""
    run, _ = written(CCT)
    layers = attentions(load_subject(str(run)).tower, images(CCT))
    assert [(one.grid, one.prefix) for one in layers] == [((8, 8), 0)] * 2
    torch.manual_seed(0)
    for config in (LADDER, KINDS["non-local"]):
        with pytest.raises(DoesNotApply, match="no attention"):
            attentions(build(config).visual.trunk.eval(), images(config))


def test_what_has_no_random_weights_is_refused(artifact: Path) -> None:
    with pytest.raises(ValueError, match="artifacts of ours"):
        load_subject("ViT-B-32/laion2b_s34b_b79k", seed=0)
    with pytest.raises(ValueError, match="has its own weights"):
        load_subject(str(artifact), "some.safetensors")
