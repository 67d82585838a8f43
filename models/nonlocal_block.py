"""Non-local blocks (Wang, Girshick, Gupta, He 2018): every position of a feature map looks at every other one.

    y_i = 1/C Σ_j f(x_i, x_j) g(x_j)        z_i = W y_i + x_i

Non-local means is the same with f = exp(−d/h²) for the distance d of patches, g the pixel itself and C the sum of f; self-attention
with f = exp(θ(x_i)·φ(x_j)) and the same C. The last map, W, begins at zero: a block that has just been inserted leaves what the
network says as it was, so one begins with trained weights. `insert` hangs blocks behind residual blocks as submodules of theirs and
renames nothing: the weights of the network alone still load.

Legend: B batch, C channels, K channels of the bottleneck, N positions, M positions that are looked at (N, or fewer after pooling).
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import torch.nn.functional as F
from timm.models.regnet import RegStage
from torch import Tensor, nn

Affinity = Literal["gaussian", "embedded_gaussian", "dot_product", "concatenation"]
NAME = "nonlocal_block"  # of the submodule of a residual block


class NonLocalBlock(nn.Module):
    """[B, C, …] → the same shape, with as many further dimensions as `dims`.

    Args:
        affinity: f and C. gaussian: exp(x_i·x_j) over its sum. embedded_gaussian: exp(θ(x_i)·φ(x_j)) over its sum. dot_product:
            θ(x_i)·φ(x_j) over the number of positions. concatenation: relu(w·[θ(x_i), φ(x_j)]) over their number.
        bottleneck: channels of θ, φ and g; None: half.
        subsample: j goes over the maxima of φ and g in cells of that side; in three dimensions of one step of time each.
        norm: a batch norm after W whose gain begins at zero, as the paper has it; without it W itself begins at zero.

    Raises:
        ValueError: there is no such affinity, or a number does not fit.
    """

    def __init__(
        self,
        channels: int,
        dims: int = 2,
        affinity: Affinity = "embedded_gaussian",
        bottleneck: int | None = None,
        subsample: int = 1,
        norm: bool = True,
    ) -> None:
        super().__init__()
        inner = max(1, channels // 2) if bottleneck is None else bottleneck
        if affinity not in get_args(Affinity):
            raise ValueError(f"affinity={affinity!r} is not one of {', '.join(get_args(Affinity))}")
        if dims not in (1, 2, 3):
            raise ValueError(f"dims={dims} is not one of 1 (sequences), 2 (images), 3 (videos)")
        if min(channels, inner, subsample) < 1:
            raise ValueError(f"channels={channels}, bottleneck={inner} and subsample={subsample} must each be at least 1")
        convolution: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        batch_norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
        pool: Any = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1]
        self.channels, self.dims, self.affinity = channels, dims, affinity
        embeds = affinity != "gaussian"
        self.theta = convolution(channels, inner, 1) if embeds else nn.Identity()
        self.phi = convolution(channels, inner, 1) if embeds else nn.Identity()
        self.g = convolution(channels, inner, 1)
        # Cells that the border cuts off count too, so that a map smaller than a cell still has one.
        cell = (1, subsample, subsample) if dims == 3 else subsample
        self.pool = pool(cell, ceil_mode=True) if subsample > 1 else nn.Identity()
        self.likeness = nn.Linear(2 * inner, 1, bias=False) if affinity == "concatenation" else None
        self.out = convolution(inner, channels, 1)
        self.norm = batch_norm(channels) if norm else nn.Identity()
        for begins_at_zero in (self.norm if norm else self.out).parameters():
            nn.init.zeros_(begins_at_zero)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels:
            raise ValueError(f"this block takes [B, {self.channels}] and {self.dims} dimensions more, not {list(x.shape)}")
        query_BNK = self.theta(x).flatten(2).transpose(1, 2)
        key_BMK, value_BMK = (self.pool(some).flatten(2).transpose(1, 2) for some in (self.phi(x), self.g(x)))
        mean_BNK = self.mean(query_BNK, key_BMK, value_BMK)
        return x + self.norm(self.out(mean_BNK.transpose(1, 2).unflatten(2, x.shape[2:])))

    def mean(self, query_BNK: Tensor, key_BMK: Tensor, value_BMK: Tensor) -> Tensor:
        """1/C Σ_j f g(x_j) [B, N, K]."""
        if self.affinity in ("gaussian", "embedded_gaussian"):  # the paper's softmax is not scaled by 1/√K
            return F.scaled_dot_product_attention(query_BNK[:, None], key_BMK[:, None], value_BMK[:, None], scale=1.0)[:, 0]
        if self.likeness is None:  # (θ φᵀ) g = θ (φᵀ g): without softmax nothing of size N · M is needed
            return query_BNK @ (key_BMK.transpose(1, 2) @ value_BMK / key_BMK.shape[1])
        weight_query_1K, weight_key_1K = self.likeness.weight.chunk(2, dim=1)
        likeness_BNM = F.linear(query_BNK, weight_query_1K) + F.linear(key_BMK, weight_key_1K).transpose(1, 2)
        return F.relu(likeness_BNM) @ value_BMK / key_BMK.shape[1]


def insert(
    model: nn.Module,
    where: str,
    *,
    affinity: Affinity = "embedded_gaussian",
    subsample: int = 1,
    norm: bool = True,
) -> nn.Module:
    """The same convolutional network of timm, with non-local blocks behind some of its residual blocks.

    A stage's blocks are spread evenly; the last one lies before the last residual block, as in the paper, unless each gets one.

    Args:
        where: `stage3:2` for two blocks in the third stage (a ResNet's layer3, which the paper calls res4); several with commas.

    Raises:
        ValueError: the network has no such stages, or too few residual blocks in one; then it is as it was.
    """
    stages = _stages(model)
    places: dict[nn.Module, int] = {}
    for part in where.split(","):
        blocks, channels, count = _asked(part.strip(), stages)
        chosen = [blocks[before - 1] for before in _spread(count, len(blocks))]
        if any(hasattr(block, NAME) or block in places for block in chosen):
            raise ValueError(f"{part.strip()}: that stage has non-local blocks already")
        places |= dict.fromkeys(chosen, channels)
    for block, channels in places.items():
        like = next(block.parameters())
        added = NonLocalBlock(channels, affinity=affinity, subsample=subsample, norm=norm).to(like.device, like.dtype)
        block.add_module(NAME, added.train(block.training))
        block.register_forward_hook(_through)
    return model


def _through(block: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return block.get_submodule(NAME)(output)


def _spread(count: int, residual_blocks: int) -> list[int]:
    """After how many residual blocks each of `count` non-local ones comes."""
    last = residual_blocks if count == residual_blocks else residual_blocks - 1
    return [-(-(place + 1) * residual_blocks // count) - (residual_blocks - last) for place in range(count)]


def _asked(part: str, stages: list[tuple[list[nn.Module], int]]) -> tuple[list[nn.Module], int, int]:
    """Residual blocks and channels of the stage that is asked for, and how many non-local blocks."""
    choices = ", ".join(f"stage{number}:1 to stage{number}:{len(blocks)}" for number, (blocks, _) in enumerate(stages, 1))
    found = re.fullmatch(r"stage([1-9]\d*):([1-9]\d*)", part)
    if not found:
        raise ValueError(f"nonlocal={part!r} does not read as stageNUMBER:BLOCKS; this network takes {choices}")
    number, count = map(int, found.groups())
    if number > len(stages) or count > len(stages[number - 1][0]):
        raise ValueError(f"nonlocal={part!r} is not in this network, which takes {choices}")
    return *stages[number - 1], count


def _stages(model: nn.Module) -> list[tuple[list[nn.Module], int]]:
    """Residual blocks and channels of each stage, as timm's feature_info has them."""
    modules, stages = dict(model.named_modules()), []
    described = getattr(model, "feature_info", None)
    if isinstance(described, list) and getattr(model, "output_fmt", "NCHW") == "NCHW":
        for one in described:
            stage = modules.get(one["module"])
            stage = getattr(stage, "blocks", stage)
            blocks = list(stage.children()) if isinstance(stage, (nn.Sequential, RegStage)) else []
            if blocks and all(next(block.children(), None) is not None for block in blocks):
                stages.append((blocks, int(one["num_chs"])))
    if not stages:
        what = "convolutional networks of timm with stages of residual blocks, such as resnet50, convnext_tiny or regnety_032"
        raise ValueError(f"non-local blocks go into {what}; {type(model).__name__} has none that are known here")
    return stages
