"""From ResNet-50 to ConvNeXt-T in twelve steps (Liu et al. 2022, "A ConvNet for the 2020s", section 2 and figure 2).

A rung is a value, the next one is the same value with one field changed, and one builder reads all of them: what two neighbours
differ in is what the step says and nothing else. The lowest is torchvision's ResNet-50, the highest is ConvNeXt-T.

What the paper leaves open follows the code of its submission (github.com/anonymous20222022/convnext, `modeling_resnet.py`): a stem
of patches has a bias and no norm; an inverted block is four times as wide inside as what it returns, also where the width changes;
convolutions of a branch have biases from layer norm on; the norms of the stem, before each downsampling and after the pooling come
with the last step; weights begin as torch draws them, in all rungs alike. Layer scale, like stochastic depth, belongs to training
and is off on each rung; `layer_scale=1e-6` makes the last one the released ConvNeXt-T.

Any field can be another: `timm.create_model("sightline_ladder", rung=7, scale=0.25, kernel=9)` is a hatched bar of figure 2. Our
training loop takes no batch norms, whose numbers depend on who shares a batch; `batch_norm=False` puts group norms in their places,
with as many parameters and FLOPs, and leaves layer norms.

Legend: B batch, C channels, H W height and width, h w those of the last map.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from math import gcd
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates
from timm.models import register_model
from torch import Tensor, nn

EXPANSION = 4  # of a bottleneck: what it returns; of an inverted one: what is inside


@dataclass(frozen=True)
class Rung:
    """A network between the two, by what the paper changes; as it stands, ResNet-50.

    Attributes:
        name: of the step that leads here, as in the paper's figure 2.
        depths: blocks of each stage.
        stem: `pool` is a 7×7 convolution and a max pool, each of stride 2; `patch` is a 4×4 convolution of stride 4.
        depthwise: the convolution that looks around sees each channel alone.
        widths: of each stage.
        inverted: a block is wide inside and narrow outside, not the other way round.
        moved_up: the convolution that looks around comes first, not second, of the three.
        kernel: its side.
        activation: after convolutions.
        one_activation: only before the last convolution of a block, not after each one and after the sum.
        one_norm: only after the convolution that looks around, not after each one.
        norm: batch norm; group norm, by 16 channels where they divide (Wu and He 2018, table 3); or layer norm over channels.
        downsampling: `block`: the first block of a stage has stride 2; `apart`: a 2×2 convolution of stride 2 stands before it.
    """

    name: str = "ResNet-50"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    stem: Literal["pool", "patch"] = "pool"
    depthwise: bool = False
    widths: tuple[int, ...] = (64, 128, 256, 512)
    inverted: bool = False
    moved_up: bool = False
    kernel: int = 3
    activation: Literal["relu", "gelu"] = "relu"
    one_activation: bool = False
    one_norm: bool = False
    norm: Literal["batch", "group", "layer"] = "batch"
    downsampling: Literal["block", "apart"] = "block"

    def normalise(self, channels: int) -> nn.Module:
        match self.norm:
            case "batch":
                return nn.BatchNorm2d(channels)
            case "group":
                return nn.GroupNorm(channels // gcd(16, channels), channels)
            case "layer":
                norm: nn.Module = LayerNorm2d(channels, eps=1e-6)
                return norm

    def activate(self) -> nn.Module:
        return nn.ReLU() if self.activation == "relu" else nn.GELU()


STEPS: tuple[tuple[str, str, Any], ...] = (
    ("stage ratio", "depths", (3, 3, 9, 3)),
    ("patchify stem", "stem", "patch"),
    ("depthwise convolution", "depthwise", True),
    ("width 96", "widths", (96, 192, 384, 768)),
    ("inverted bottleneck", "inverted", True),
    ("depthwise moved up", "moved_up", True),
    ("kernel 7", "kernel", 7),
    ("GELU", "activation", "gelu"),
    ("fewer activations", "one_activation", True),
    ("fewer norms", "one_norm", True),
    ("layer norm", "norm", "layer"),
    ("separate downsampling", "downsampling", "apart"),
)
LADDER: tuple[Rung, ...] = tuple(
    accumulate(STEPS, lambda below, step: replace(below, name=step[0], **{step[1]: step[2]}), initial=Rung())
)


@dataclass(frozen=True)
class Published:
    """What the paper has for a rung.

    Attributes:
        giga_macs: multiply-adds of an image of 224 pixels in 10⁹, which the paper calls FLOPs.
        top1: on ImageNet after 300 epochs, in %.
    """

    giga_macs: float
    top1: float


# Table 10, means of three seeds. Its 4.46 for layer norm cannot be: nothing that counts changes, nor does table 11 in that step,
# and figure 2 has 4.2, which stands here. (4.46 is what separate downsampling comes to, for which the table has 4.49.)
PAPER = (
    *(Published(4.09, 78.82), Published(4.53, 79.36), Published(4.42, 79.51), Published(2.35, 78.28), Published(5.27, 80.50)),
    *(Published(4.64, 80.64), Published(4.07, 79.92), Published(4.15, 80.57), Published(4.15, 80.62), Published(4.15, 81.27)),
    *(Published(4.15, 81.41), Published(4.2, 81.47), Published(4.49, 81.97)),
)


class Block(nn.Module):
    """Three convolutions around which the input goes: [B, inputs, H, W] → [B, outputs, H / stride, W / stride].

    A bottleneck returns EXPANSION times its width, an inverted one its width, with EXPANSION times that inside.
    """

    def __init__(
        self, rung: Rung, inputs: int, width: int, stride: int, drop_path: float = 0.0, layer_scale: float | None = None
    ) -> None:
        super().__init__()
        inner, outputs = (EXPANSION * width, width) if rung.inverted else (width, EXPANSION * width)
        self.outputs = outputs
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((outputs,), layer_scale))
        around = 0 if rung.moved_up else 1
        channels = [inputs, inputs, inner, outputs] if rung.moved_up else [inputs, inner, inner, outputs]
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for place in range(3):
            before, after = channels[place : place + 2]
            layers[f"conv{place + 1}"] = nn.Conv2d(
                before,
                after,
                rung.kernel if place == around else 1,
                stride=stride if place == around else 1,
                padding=rung.kernel // 2 if place == around else 0,
                groups=before if place == around and rung.depthwise else 1,
                bias=rung.norm == "layer",
            )
            if place == around or not rung.one_norm:
                layers[f"norm{place + 1}"] = rung.normalise(after)
            if place == 1 or (place == 0 and not rung.one_activation):
                layers[f"act{place + 1}"] = rung.activate()
        self.branch = nn.Sequential(layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), rung.normalise(outputs))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.last_act = nn.Identity() if rung.one_activation else rung.activate()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        change_BCHW: Tensor = self.branch(x_BCHW)
        if self.gamma is not None:
            change_BCHW = change_BCHW * self.gamma[:, None, None]
        out_BCHW: Tensor = self.last_act(self.drop_path(change_BCHW) + self.shortcut(x_BCHW))
        return out_BCHW


class Ladder(nn.Module):
    """Normalised images [B, in_chans, H, W] → logits [B, num_classes], with the interface of timm's ConvNeXt."""

    def __init__(
        self,
        rung: Rung,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        layer_scale: float | None = None,
    ) -> None:
        """Random weights, drawn from torch's current generator.

        Args:
            drop_path_rate: of the last block; that of the first is 0, with equal steps from block to block.
            layer_scale: what the gains of all branches begin with; None for no gains.
        """
        super().__init__()
        apart = rung.downsampling == "apart"
        self.stem = _stem(rung, in_chans)
        rates = iter(calculate_drop_path_rates(drop_path_rate, sum(rung.depths)))
        channels, stages, self.feature_info = rung.widths[0], [], []
        for index, (width, depth) in enumerate(zip(rung.widths, rung.depths, strict=True)):
            down: nn.Module = nn.Identity()
            if apart and index:
                down = nn.Sequential(rung.normalise(channels), nn.Conv2d(channels, width, 2, stride=2))
                channels = width
            blocks = []
            for place in range(depth):
                stride = 2 if index and not place and not apart else 1
                blocks.append(Block(rung, channels, width, stride, next(rates), layer_scale))
                channels = blocks[-1].outputs
            stages.append(nn.Sequential(OrderedDict(downsample=down, blocks=nn.Sequential(*blocks))))
            self.feature_info.append({"num_chs": channels, "reduction": 4 * 2**index, "module": f"stages.{index}"})
        self.stages = nn.Sequential(*stages)
        self.num_features, self.num_classes = channels, num_classes
        head: Any = NormMlpClassifierHead if apart else ClassifierHead
        self.head = head(channels, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.default_cfg: dict[str, Any] = {"pool_size": (7, 7), "first_conv": "stem.conv", "classifier": "head.fc"}

    def get_classifier(self) -> nn.Module:
        classifier: nn.Module = self.head.fc
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        x_BChw: Tensor = self.stages(self.stem(x_BCHW))
        return x_BChw

    def forward_head(self, x_BChw: Tensor, pre_logits: bool = False) -> Tensor:
        out: Tensor = self.head(x_BChw, pre_logits=pre_logits)
        return out

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x_BCHW))


def _stem(rung: Rung, in_chans: int) -> nn.Module:
    width = rung.widths[0]
    if rung.stem == "patch":
        layers = OrderedDict(conv=nn.Conv2d(in_chans, width, 4, stride=4))
        return nn.Sequential(layers | ({"norm": rung.normalise(width)} if rung.downsampling == "apart" else {}))
    convolution = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(conv=convolution, norm=rung.normalise(width), act=rung.activate(), pool=pool))


def find_rung(index: int, scale: float = 1.0, batch_norm: bool = True, **changes: Any) -> Rung:
    """The rung of that number, from 0 to 12, with `scale` times its widths, perhaps group norms for batch norms, or other fields.

    Raises:
        ValueError: there is no such rung, a field cannot have that value, or a width would not be a whole number.
    """
    if index not in range(len(LADDER)):
        choices = ", ".join(f"{number} ({rung.name})" for number, rung in enumerate(LADDER))
        raise ValueError(f"the ladder has no rung {index!r}; give one of {choices}")
    types = get_type_hints(Rung)
    for field, value in changes.items():
        if get_origin(types[field]) is Literal and value not in get_args(types[field]):
            raise ValueError(f"{field}={value!r} is not one of {', '.join(get_args(types[field]))}")
    values: dict[str, Any] = {field: tuple(value) if isinstance(value, list) else value for field, value in changes.items()}
    rung = replace(LADDER[index], **values)
    if rung.norm == "batch" and not batch_norm:
        rung = replace(rung, norm="group")
    if rung.kernel % 2 == 0:
        raise ValueError(f"kernel={rung.kernel} has no middle; give an odd one")
    widths = tuple(scale * width for width in rung.widths)
    if any(width < 1 or width != int(width) for width in widths):
        raise ValueError(f"scale={scale} makes the widths {', '.join(map(str, widths))}; give a multiple of 1/32, such as 0.25")
    return replace(rung, widths=tuple(map(int, widths)))


@register_model
def sightline_ladder(
    pretrained: bool = False, pretrained_cfg: Any = None, pretrained_cfg_overlay: Any = None, **options: Any
) -> Ladder:
    """timm's entry point: `timm.create_model("sightline_ladder", rung=12, scale=0.25)`; options: `find_rung` and `Ladder`."""
    if pretrained:
        raise ValueError("sightline_ladder has no pretrained weights")
    options.pop("cache_dir", None)
    asked = ("scale", "batch_norm", *(field.name for field in fields(Rung)[1:]))
    changes = {name: options.pop(name) for name in asked if name in options}
    return Ladder(find_rung(options.pop("rung", len(LADDER) - 1), **changes), **options)
