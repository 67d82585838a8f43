"""Receptive fields against the literature, and against the gradient's support."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import BlurPool2d
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.models.lenses.receptive_field import Axis, field_of, receptive_fields, support, unit_gradient
from sightline.models.lenses.subject import DoesNotApply, load_subject

pytestmark = pytest.mark.usefixtures("one_thread")


class Branches(nn.Module):
    """A wide and a narrow way, which are added and then joined side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 4, (7, 3), padding=(3, 1))
        self.narrow = nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(8, 2, 3, stride=2, dilation=2)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        narrow = self.narrow(image_BCHW)
        return self.last(torch.cat([self.wide(image_BCHW) + narrow, F.avg_pool2d(narrow, 3, 1, 1)], 1))  # type: ignore[no-any-return]


def all_positive(net: nn.Module) -> nn.Module:
    """With weights that cannot cancel each other, so that the gradient is zero outside the field alone."""
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.5, 1.0)
    return net.eval()


@pytest.mark.parametrize(
    ("net", "layer", "size", "stride"),
    [  # Araujo, Norris and Sim 2019, table 1 (all end before global pooling), and torchvision's ResNets
        (torchvision.models.alexnet, "features.12", 195, 32),
        (torchvision.models.vgg16, "features.30", 212, 32),
        (torchvision.models.resnet18, "layer4.1.conv2", 435, 32),
        (torchvision.models.resnet50, "layer4.2.conv3", 427, 32),
    ],
)
def test_fields_are_those_of_the_literature(net: type[nn.Module], layer: str, size: int, stride: int) -> None:
    field = field_of(net(), layer)
    assert (field.y.size, field.x.size, field.y.stride, field.everywhere) == (size, size, stride, False)


def test_what_sees_how_much_depends_on_the_images_size_is_left_out() -> None:
    assert (
        receptive_fields(torchvision.models.vgg16())[-1].name == "features.30"
    )  # before it pools to 7 x 7 cells, and after the rest
    assert receptive_fields(torchvision.models.resnet18())[-1].field.everywhere


def test_inception_has_the_largest_of_its_branches() -> None:
    fields = receptive_fields(timm.create_model("inception_v3"))
    assert fields[-1].field.everywhere and fields[-1].field.y == Axis(-618, 692, 32)  # 1311 pixels: Araujo et al., table 1


@given(
    layers=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2), st.booleans()), min_size=1, max_size=3
    )
)
@settings(max_examples=25, deadline=None)
def test_the_gradient_touches_exactly_the_field(layers: list[tuple[int, int, int, int, bool]]) -> None:
    made: list[nn.Module] = []
    for kernel, stride, padding, dilation, pooled in layers:
        made.append(nn.Conv2d(3, 3, kernel, stride, padding, dilation))
        made += [nn.AvgPool2d(2, 1)] if pooled else []
    net = all_positive(nn.Sequential(*made))
    name = str(len(made) - 1)
    gradient, unit, _ = unit_gradient(net, name, torch.rand(1, 3, 48, 48))
    assert support(gradient) == field_of(net, name).box(unit, (48, 48))


def test_branches_meet_in_their_hull() -> None:
    net = all_positive(Branches())
    gradient, unit, _ = unit_gradient(net, "last", torch.rand(2, 3, 32, 40))
    field = field_of(net, "last")
    assert (field.y.size, field.x.size, field.y.stride) == (11, 7, 2)
    assert support(gradient) == field.box(unit, (32, 40))


def test_squeeze_and_excitation_sees_everything() -> None:
    net = timm.create_model("mobilenetv3_small_050")
    assert not field_of(net, "conv_stem").everywhere and field_of(net, "conv_head").everywhere


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        ("vit_tiny_patch16_224", "patch_embed", 16),
        ("vit_tiny_patch16_224", "blocks.0", 64),
        ("swin_tiny_patch4_window7_224", "patch_embed", 4),
    ],
)
def test_attention_sees_by_gradient(name: str, layer: str, side: int) -> None:
    """One patch before the first attention, the whole image after it."""
    options = {"img_size": 64, "window_size": 4} if name.startswith("swin") else {"img_size": 64, "depth": 1}
    gradient, _, _ = unit_gradient(timm.create_model(name, **options).eval(), layer, torch.randn(1, 3, 64, 64))
    box = support(gradient)
    assert box is not None and (box[2] - box[0], box[3] - box[1]) == (side, side)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 3, 3), BlurPool2d(3), nn.Conv2d(3, 3, 3)),
        nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 3, 1)),
        nn.Sequential(nn.Conv2d(3, 3, 3), nn.Upsample(scale_factor=2)),
        timm.create_model("mobilevit_xxs"),
    ],
    ids=["BlurPool", "PixelUnshuffle", "Upsample", "MobileViT"],
)
def test_what_is_not_known_to_keep_places_is_refused(net: nn.Module) -> None:
    """Rather than taken for pointwise: a number that is wrong is worse than none."""
    with pytest.raises(DoesNotApply, match="no closed form"):
        receptive_fields(net)


def test_random_weights_open_the_branches_that_libraries_close() -> None:
    """timm begins a ResNet's last norms, and ConvNeXt its layer scale, next to zero: only shortcuts would be seen."""
    for name in ("timm/resnet18", "torchvision/resnet18", "timm/convnext_atto"):
        subject = load_subject(name, seed=0)
        layer = {"timm/convnext_atto": "stages.1"}.get(name, "layer2.1")
        gradient, unit, _ = unit_gradient(subject.tower, layer, torch.randn(1, 3, 224, 224))
        inside = [one.field for one in receptive_fields(subject.tower) if one.name.startswith(f"{layer}.")]
        assert support(gradient) == max(inside, key=lambda field: field.y.size).box(unit, (224, 224)), name


def test_what_has_no_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match="by gradient"):
        receptive_fields(timm.create_model("swin_tiny_patch4_window7_224"))
    with pytest.raises(ValueError, match=r"'nowhere'.*layer1"):
        field_of(torchvision.models.resnet18(), "nowhere")
    with pytest.raises(ValueError, match="no places"):
        unit_gradient(torchvision.models.resnet18().eval(), "fc", torch.rand(1, 3, 64, 64))
