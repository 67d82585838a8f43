"""What attention adds up to through all layers: how much of each input token is in each output token.

    rollout      Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", eq. 1
    relevance    Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
                 Transformers", eqs. 5 and 6

Both are a product of one matrix a layer, taken from the output down, so that the few tokens of Swin's last stage are all that is
carried. Ours, where the papers have nothing: what a pool pools into has no residual path, and of several pools of the same tokens
the last is followed; between Swin's stages a merged token is its (up to four) tokens in equal parts.

Legend: B batch, Q output tokens, N tokens, P places, h w the grid; W windows, H heads, Q K of a window in `local_BWHQK`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.models.vision_transformer
from torch import Tensor, nn

from sightline.models.lenses.attention import LayerAttention, attentions


def rollout(layers: list[LayerAttention]) -> Tensor:
    """How much of each input token is in each output token [B, Q, N], by attention and residual paths; rows sum to 1.

    The product of (A + I) / 2 over the layers, A the mean of the heads (eq. 1).
    """

    def step(layer: LayerAttention) -> Tensor:
        mean_BNN = layer.in_image(layer.local_BWHQK.mean(2, keepdim=True))[:, 0]
        mean_BNN = mean_BNN / mean_BNN.sum(-1, keepdim=True)  # where Swin pads
        return mean_BNN if layer.pools else (mean_BNN + _identity(mean_BNN)) / 2

    return _product(layers, step)


def relevance(tower: nn.Module, image_BCHW: Tensor, score: Callable[[Any], Tensor]) -> Tensor:
    """How much of each input token in each output token speaks for a score [B, Q, N]; see `attentions` and `relevance_of`."""
    return relevance_of(attentions(tower, image_BCHW, score))


def relevance_of(layers: list[LayerAttention]) -> Tensor:
    """The same, of layers with gradients: R ← R + Ā R with Ā the mean over heads of (∇A ⊙ A)⁺ (eqs. 5 and 6); of a pool Ā R.

    Raises:
        ValueError: the layers have no gradients.
    """

    def step(layer: LayerAttention) -> Tensor:
        if layer.gradient_BWHQK is None:
            raise ValueError("relevance needs gradients: give `attentions` a score")
        weighted_BWHQK = (layer.gradient_BWHQK * layer.local_BWHQK).clamp_min(0)
        mean_BNN = layer.in_image(weighted_BWHQK.mean(2, keepdim=True))[:, 0]
        return mean_BNN if layer.pools else mean_BNN + _identity(mean_BNN)

    return _product(layers, step)


def attended(tower: nn.Module, layers: list[LayerAttention], flow_BQN: Tensor) -> Tensor:
    """The map [B, h, w] of what the tower's output comes from: those rows that it is pooled from, at the first layer's places."""
    tower = getattr(tower, "trunk", tower)
    pooling = getattr(tower, "global_pool", getattr(tower, "pool_type", None))
    class_token = pooling in ("token", "tok") or isinstance(tower, torchvision.models.VisionTransformer)
    if _chain(layers)[-1].pools:
        row_BN = flow_BQN.mean(1)
    elif class_token:
        row_BN = flow_BQN[:, 0]
    else:
        row_BN = flow_BQN[:, layers[-1].prefix :].mean(1)
    return row_BN[:, layers[0].prefix :].unflatten(1, layers[0].grid)


def _chain(layers: list[LayerAttention]) -> list[LayerAttention]:
    """The layers that follow on one another: of several pools of the same tokens the last is what the tower gives."""
    return [one for one in layers if not one.pools] + [one for one in layers if one.pools][-1:]


def _product(layers: list[LayerAttention], step: Callable[[LayerAttention], Tensor]) -> Tensor:
    """Of the steps [B, Q, N] of all layers, the last one's on the left."""
    *before, last = _chain(layers)
    flow_BQN, above = step(last), last
    for layer in reversed(before):
        flow_BQN, above = _at_grid(flow_BQN, above, layer) @ step(layer), layer
    return flow_BQN


def _at_grid(flow_BQN: Tensor, above: LayerAttention, below: LayerAttention) -> Tensor:
    """The same flow with its columns for the tokens of the layer below."""
    prefix_BQN, place_BQP = flow_BQN.split([above.prefix, flow_BQN.shape[-1] - above.prefix], -1)
    if above.grid != below.grid:
        merged = [torch.arange(size) // -(-size // fewer) for size, fewer in zip(below.grid, above.grid, strict=True)]
        parts_hw = merged[0].bincount()[:, None] * merged[1].bincount()
        place_BQhw = place_BQP.unflatten(-1, above.grid) / parts_hw
        place_BQP = place_BQhw[:, :, merged[0]][:, :, :, merged[1]].flatten(2)
    if above.prefix > below.prefix:
        raise ValueError(f"{above.name} pools with a token of its own, which is not one of {below.name}: this cannot be followed")
    return torch.cat([F.pad(prefix_BQN, (0, below.prefix - above.prefix)), place_BQP], -1)


def _identity(matrix_BNN: Tensor) -> Tensor:
    return torch.eye(matrix_BNN.shape[-1], dtype=matrix_BNN.dtype, device=matrix_BNN.device)
