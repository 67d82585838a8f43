"""The ladder's ends are the libraries' ResNet-50 and ConvNeXt-T, its FLOPs those of the paper, and a step changes what it says."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from sightline.models.classifier import Classifier, has_batch_norms
from sightline.models.flops import count
from sightline.models.ladder import LADDER, PAPER, STEPS, find_rung
from sightline.models.sharding import block_names

pytestmark = pytest.mark.usefixtures("one_thread")

RUNGS = range(len(LADDER))
# Figure 2 of the paper, without the kernels that it tries and does not take.
NAMED = ["depths", "stem", "depthwise", "widths", "inverted", "moved_up", "kernel", "activation"]
NAMED += ["one_activation", "one_norm", "norm", "downsampling"]


def built(**options: Any) -> Any:
    return timm.create_model("sightline_ladder", **options)


def on_paper(**options: Any) -> Any:
    with torch.device("meta"):
        return built(**options).eval()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def giga_macs(model: nn.Module, size: int = 224) -> float:
    """Multiply-adds, which the paper calls FLOPs; our own count takes two for each."""
    return count(model, torch.empty(1, 3, size, size, device="meta")) / 2e9


def by_hand(index: int) -> tuple[int, float]:
    """Parameters and 10⁹ multiply-adds, from table 9 and figures 3 and 4: a sum over convolutions."""
    ratio, patch, depthwise, wide, inverted, moved_up, big, *_, one_norm, layer_norm, apart = (
        index >= step for step in range(1, 13)
    )
    first, kernel, bias = (96 if wide else 64), (7 if big else 3), int(layer_norm)
    total = macs = 0

    def convolution(inputs: int, outputs: int, side: int, grid: int, *, bias: int = 0, norm: bool = True) -> None:
        nonlocal total, macs
        total += inputs * outputs * side**2 + bias * outputs + 2 * norm * outputs
        macs += inputs * outputs * side**2 * grid**2

    convolution(3, first, *((4, 56) if patch else (7, 112)), bias=int(patch), norm=not patch or apart)
    inputs, grid = first, 56
    for stage, depth in enumerate((3, 3, 9, 3) if ratio else (3, 4, 6, 3)):
        width = first * 2**stage
        inner, outputs = (4 * width, width) if inverted else (width, 4 * width)
        for place in range(depth):
            before = grid
            if stage and not place:
                grid //= 2
                if apart:
                    convolution(inputs, width, 2, grid, bias=1, norm=False)
                    total += 2 * inputs
                    inputs, before = width, grid
            around = inputs if moved_up else inner
            if not moved_up:
                convolution(inputs, inner, 1, before, bias=bias)
            convolution(1 if depthwise else around, around, kernel, grid, bias=bias)
            if moved_up:
                convolution(inputs, inner, 1, grid, bias=bias, norm=not one_norm)
            convolution(inner, outputs, 1, grid, bias=bias, norm=not one_norm)
            if inputs != outputs:
                convolution(inputs, outputs, 1, grid)
            inputs = outputs
    convolution(inputs, 1000, 1, 1, bias=1, norm=False)
    return total + 2 * apart * inputs, macs / 1e9


@pytest.mark.parametrize("rung", RUNGS)
def test_flops_are_those_of_the_paper(rung: int) -> None:
    assert giga_macs(on_paper(rung=rung)) == pytest.approx(PAPER[rung].giga_macs, rel=0.02)


@pytest.mark.parametrize(("kernel", "published"), [(5, 4.10), (9, 4.21), (11, 4.29)])
def test_so_are_those_of_the_kernels_that_are_not_taken(kernel: int, published: float) -> None:
    assert giga_macs(on_paper(rung=7, kernel=kernel)) == pytest.approx(published, abs=0.005)


@pytest.mark.parametrize(("rung", "millions"), [(0, 25.6), (12, 28.6)])
def test_parameters_are_those_of_the_paper(rung: int, millions: float) -> None:
    """Table 9, which has the two ends only."""
    assert parameters(on_paper(rung=rung)) / 1e6 == pytest.approx(millions, rel=0.002)


@pytest.mark.parametrize("rung", RUNGS)
def test_parameters_and_flops_by_hand(rung: int) -> None:
    total, macs = by_hand(rung)
    assert parameters(on_paper(rung=rung)) == total and giga_macs(on_paper(rung=rung)) == pytest.approx(macs, rel=1e-9)


def test_a_step_changes_the_field_that_it_names() -> None:
    assert [step[1] for step in STEPS] == NAMED
    for below, above, named in zip(LADDER, LADDER[1:], NAMED, strict=False):
        changed = [field.name for field in fields(above) if getattr(below, field.name) != getattr(above, field.name)]
        assert changed == ["name", named] or changed == [named, "name"]


def with_weights_of(ours: nn.Module, theirs: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Both with the same numbers, which say something everywhere; tensors are paired in their order."""
    generator = torch.Generator().manual_seed(0)
    for tensor in theirs.state_dict().values():
        if tensor.ndim == 1:  # gains, biases, statistics, layer scale
            tensor.copy_(0.5 + 0.5 * torch.rand(tensor.shape, generator=generator))
    pairs = list(zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    for mine, other in pairs:
        assert mine.numel() == other.numel() and mine.shape[:1] == other.shape[:1]
        mine.copy_(other.reshape(mine.shape))  # a linear layer is a 1×1 convolution
    return ours.eval(), theirs.eval()


@pytest.mark.parametrize(
    ("rung", "options", "library", "architecture"),
    [
        (0, {}, "torchvision", "resnet50"),
        (0, {}, "timm", "resnet50"),
        (12, {"layer_scale": 1e-6}, "timm", "convnext_tiny"),
    ],
)
def test_the_ends_are_the_models_of_the_libraries(rung: int, options: dict[str, Any], library: str, architecture: str) -> None:
    theirs = timm.create_model(architecture) if library == "timm" else torchvision.models.get_model(architecture)
    ours, theirs = with_weights_of(built(rung=rung, **options), theirs)
    assert parameters(ours) == parameters(theirs)
    image_BCHW = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected_BL = theirs(image_BCHW)
        torch.testing.assert_close(ours(image_BCHW), expected_BL, rtol=1e-5, atol=1e-5 * float(expected_BL.abs().max()))


@pytest.mark.parametrize("batch_norm", [pytest.param(True, marks=pytest.mark.campaign), False])
@pytest.mark.parametrize("rung", RUNGS)
def test_every_weight_learns(rung: int, batch_norm: bool) -> None:
    torch.manual_seed(rung)
    model = built(rung=rung, scale=0.125, batch_norm=batch_norm, num_classes=5, drop_path_rate=0.1, layer_scale=0.1)
    logits_BL = model.train()(torch.randn(2, 3, 64, 64))
    assert logits_BL.shape == (2, 5)
    logits_BL.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("rung", RUNGS)
def test_without_batch_norms_a_row_is_its_own(rung: int) -> None:
    torch.manual_seed(0)
    model = built(rung=rung, scale=0.125, batch_norm=False, num_classes=5).train()
    image_BCHW = torch.randn(3, 3, 32, 32)
    assert not has_batch_norms(model)
    torch.testing.assert_close(model(image_BCHW)[:1], model(image_BCHW[:1]), rtol=1e-4, atol=1e-5)
    assert parameters(model) == parameters(built(rung=rung, scale=0.125, num_classes=5))


@pytest.mark.parametrize("rung", [0, 12])
def test_a_rung_is_a_backbone_of_our_classifier(rung: int) -> None:
    network: Any = Classifier({"timm_model_name": "sightline_ladder", "rung": rung, "scale": 0.125}, size=64, classes=10, hidden=0)
    assert network(torch.randn(2, 3, 64, 64)).shape == (2, 10)
    assert block_names(network) == [f"visual.trunk.stages.{stage}" for stage in range(4)]
    trunk = network.visual.trunk
    assert trunk.feature_info[-1]["num_chs"] == trunk.num_features == (256 if rung == 0 else 96)
    assert trunk.forward_features(torch.randn(2, 3, 64, 64)).shape == (2, trunk.num_features, 2, 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"index": 13}, r"^the ladder has no rung 13; give one of 0 \(ResNet-50\), 1 \(stage ratio\)"),
        ({"index": 4, "scale": 0.3}, r"^scale=0\.3 makes the widths 28\.\d+, .* give a multiple of 1/32"),
        ({"index": 4, "stem": "patches"}, r"^stem='patches' is not one of pool, patch$"),
        ({"index": 7, "kernel": 8}, r"^kernel=8 has no middle"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_rung(**options)
