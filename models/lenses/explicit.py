"""Attention in plain steps: the same module, run again with softmax(q kᵀ / √K) v written out, so that its weights can be seen.

Fused kernels give no weights. So the module's own forward is run again on the input that it got, under a mode of torch that
answers each call of a fused kernel with the plain steps and looks at each softmax that is plain already. Whatever else the module
does (norms of queries and keys, rotary positions, relative biases, masks, gates) is its own code, for every library. The invariant,
which `again` asserts: the output is the module's own to 1e-5. The weights lie on the path to that output, so they have gradients.

Legend: B batch, H heads, L queries, S keys, C width, K channels a head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

TOLERANCE = 1e-5  # of the largest output, where that is above 1
_SOFTMAX: tuple[Callable[..., Tensor], ...] = (torch.Tensor.softmax, torch.softmax, F.softmax)


def again(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> tuple[Any, Tensor]:
    """The module's output, computed anew in plain steps, and its softmaxed weights [B, H, L, S].

    Args:
        output: what the module gave for these arguments.
    """
    with Explicit() as explicit:
        recomputed = module.forward(*args, **kwargs)
    (weights_BHLS,) = explicit.weights  # one attention a module
    _assert_same(output, recomputed, type(module).__name__)
    return recomputed, weights_BHLS


class Explicit(TorchFunctionMode):
    """While it is on, attention is computed in plain steps; `weights` keeps each softmax in order."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs), None
        result = func(*args, **kwargs)
        if any(func is softmax for softmax in _SOFTMAX):
            self.weights.append(result)
        return result

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """softmax(q kᵀ · scale + mask) v, as `scaled_dot_product_attention` is documented."""
        assert not (dropout_p or is_causal or enable_gqa), "image towers in evaluation mode use none of these"
        logits_BHLS = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits_BHLS = logits_BHLS.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            logits_BHLS = logits_BHLS + attn_mask
        self.weights.append(logits_BHLS.softmax(-1))
        return self.weights[-1] @ value

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        embed_dim_to_check: int,
        num_heads: int,
        in_proj_weight: Tensor | None,
        in_proj_bias: Tensor | None,
        bias_k: Tensor | None,
        bias_v: Tensor | None,
        add_zero_attn: bool,
        dropout_p: float,
        out_proj_weight: Tensor,
        out_proj_bias: Tensor | None,
        training: bool = True,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        q_proj_weight: Tensor | None = None,
        k_proj_weight: Tensor | None = None,
        v_proj_weight: Tensor | None = None,
        **other: Any,
    ) -> Tensor:
        """`multi_head_attention_forward` of tokens [L, B, C] and [S, B, C]: projections, attention, projection.

        Asked for weights, torch gives a view of them that the output does not depend on; a gradient needs the weights themselves.
        """
        assert bias_k is None and bias_v is None and not add_zero_attn and key_padding_mask is None and attn_mask is None
        if in_proj_weight is None:
            weights = [q_proj_weight, k_proj_weight, v_proj_weight]
        else:
            weights = list(in_proj_weight.chunk(3))
        biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        heads = [
            F.linear(x, weight, bias).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)  # type: ignore[arg-type]
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        mixed_BHLK = self._attend(*heads)
        return F.linear(mixed_BHLK.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)


def _assert_same(own: Any, recomputed: Any, kind: str) -> None:
    own, recomputed = (one[0] if isinstance(one, tuple) else one for one in (own, recomputed))
    scale = max(1.0, float(own.detach().abs().max()))
    error = float((own - recomputed).detach().abs().max()) / scale
    assert error <= TOLERANCE, f"{kind} recomputed in plain steps is off by {error:.1e} of its own output"
