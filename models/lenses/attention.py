"""What attends to what in an image tower: the softmaxed weights of every layer, in the order in which they run.

A hook on each attention module sees what the module got and gave; `explicit.again` runs it once more in plain steps, and the tower
goes on with that output. So the weights are those of this very pass, equal to the model's own output to 1e-5, and the tower's
output depends on them: gradients with respect to the weights come from the same pass.

Weights are kept by window, as they are computed: a ViT has one window of all its tokens, Swin many of a few. `query_WQ` and
`key_WK` say which token of the image each place in a window is, padding and the cyclic shift undone.

Mean attention distance is that of Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 7 (right) and appendix D.7.

Legend: B batch, W windows, H heads, Q queries and K keys of a window, N tokens, h w the grid.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import log2
from typing import Any

import open_clip.modified_resnet
import open_clip.transformer
import timm.layers
import timm.models.beit
import timm.models.eva
import timm.models.swin_transformer
import timm.models.swin_transformer_v2
import timm.models.vision_transformer_relpos
import torch
import torch.nn.functional as F
import torchvision.models.swin_transformer
from torch import Tensor, nn

from sightline.models.lenses.explicit import again
from sightline.models.lenses.subject import DoesNotApply

TIMM_WINDOWS = (timm.models.swin_transformer.WindowAttention, timm.models.swin_transformer_v2.WindowAttention)
WINDOWS = (*TIMM_WINDOWS, torchvision.models.swin_transformer.ShiftedWindowAttention)
POOLS = (open_clip.modified_resnet.AttentionPool2d, timm.layers.AttentionPool2d, timm.layers.RotAttentionPool2d)  # of a map
KNOWN = (
    *WINDOWS,
    *POOLS,
    nn.MultiheadAttention,
    open_clip.transformer.Attention,
    timm.layers.Attention,
    timm.layers.AttentionRope,
    timm.layers.AttentionPoolLatent,
    timm.models.beit.Attention,
    timm.models.eva.EvaAttention,
    timm.models.vision_transformer_relpos.RelPosAttention,
)


@dataclass(frozen=True)
class Window:
    """Rows and columns of tokens in a window, and by how many the windows are shifted."""

    size: tuple[int, int]
    shift: tuple[int, int]


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one module to a batch of images.

    Attributes:
        name: of the module in the tower.
        local_BWHQK: softmaxed weights by window; each row sums to 1.
        query_WQ, key_WK: which token each is, −1 for padding; tokens are the prefix and then the places, row by row.
        prefix: how many of the first keys are no places (class and register tokens, the mean of an attention pool).
        grid: rows and columns of places.
        stride_px: pixels from a place to the next, down and across.
        window: of Swin.
        pools: the queries are not the tokens but what they are pooled into.
        gradient_BWHQK: of the score with respect to the weights, where a score was given.
    """

    name: str
    local_BWHQK: Tensor
    query_WQ: Tensor
    key_WK: Tensor
    prefix: int
    grid: tuple[int, int]
    stride_px: tuple[float, float]
    window: Window | None = None
    pools: bool = False
    gradient_BWHQK: Tensor | None = None

    @property
    def weights_BHNN(self) -> Tensor:  # noqa: N802 - the name carries the axes
        """Of every token of the image to every other (of a pool: of its queries); where Swin pads, rows sum to less than 1."""
        return self.in_image(self.local_BWHQK)

    def in_image(self, local_BWHQK: Tensor) -> Tensor:
        """What is known by window, by tokens of the image [B, H, N, N], zero between windows."""
        batch, _, heads, _, _ = local_BWHQK.shape
        image_BHNN = local_BWHQK.new_zeros(batch, heads, int(self.query_WQ.max()) + 2, int(self.key_WK.max()) + 2)
        image_BHNN[:, :, self.query_WQ[:, :, None], self.key_WK[:, None, :]] = local_BWHQK.transpose(1, 2)
        return image_BHNN[:, :, :-1, :-1]  # −1, the padding, went into the last


def attentions(tower: nn.Module, image_BCHW: Tensor, score: Callable[[Any], Tensor] | None = None) -> list[LayerAttention]:
    """Every attention module of an image tower in evaluation mode, in the order in which they run.

    Args:
        image_BCHW: normalised images of the tower's size, in float32.
        score: of the tower's output, a number an image [B] (any shape that sums to it); with it layers have gradients.

    Raises:
        ValueError: the tower has no attention, has one that is not known here, or takes no images of this size.
    """
    modules = _modules(tower)
    refuse_size(tower, image_BCHW)
    with torch.inference_mode(False), torch.set_grad_enabled(score is not None):
        image_BCHW = image_BCHW.detach().clone().requires_grad_(score is not None)
        with _listening(tower, modules) as heard:
            output = tower(image_BCHW)
        gradients: tuple[Tensor | None, ...] = (None,) * len(heard)
        if score is not None:
            wanted = [one.weights for one in heard]
            gradients = torch.autograd.grad(score(output).sum(), wanted, allow_unused=True, materialize_grads=True)
    silent = set(modules) - {one.name for one in heard}
    if silent:
        raise ValueError(f"{', '.join(sorted(silent))} did not run: something else computes this attention, and it cannot be seen")
    return [_layer(tower, image_BCHW, one, gradient) for one, gradient in zip(heard, gradients, strict=True)]


def pick(layers: list[LayerAttention], name: str) -> LayerAttention:
    """The layer of that name, or of that number ("0" is the first, "-1" the last).

    Raises:
        ValueError: there is none; the message lists them.
    """
    named = {one.name: one for one in layers} | {str(i): layers[i] for i in range(-len(layers), len(layers))}
    if name not in named:
        raise ValueError(f"there is no attention layer {name!r}; choose {', '.join(one.name for one in layers)}")
    return named[name]


# -- by layer


def mean_distance(layer: LayerAttention) -> Tensor:
    """Pixels between a place and those that it attends to, weighted by attention: [H], the mean over places and images.

    Only places have a distance: the weights of a place on other places are scaled to sum to 1.

    Raises:
        ValueError: the layer pools, so its queries are nowhere.
    """
    if layer.pools:
        raise ValueError(f"{layer.name} pools: what it pools into has no place, so no distance; ask a layer before it")
    query_WQ2, key_WK2 = (_position_px(layer, token) for token in (layer.query_WQ, layer.key_WK))
    distance_WHQK = torch.cdist(query_WQ2, key_WK2)[:, None]
    weights_BWHQK = layer.local_BWHQK * (layer.key_WK >= layer.prefix)[:, None, None, :]
    mean_BWHQ = (weights_BWHQK * distance_WHQK).sum(-1) / weights_BWHQK.sum(-1).clamp_min(torch.finfo(weights_BWHQK.dtype).tiny)
    return _mean_over_queries(mean_BWHQ, layer.query_WQ >= layer.prefix)


def entropy(layer: LayerAttention) -> Tensor:
    """−Σ w log w in nats: [H], the mean over all queries and images; log K where attention is even, 0 where it is on one token."""
    return _mean_over_queries(torch.special.entr(layer.local_BWHQK).sum(-1), layer.query_WQ >= 0)


def _position_px(layer: LayerAttention, token: Tensor) -> Tensor:
    place = token - layer.prefix
    row, column = place.div(layer.grid[1], rounding_mode="floor"), place.remainder(layer.grid[1])
    return torch.stack([row * layer.stride_px[0], column * layer.stride_px[1]], -1).float()


def _mean_over_queries(value_BWHQ: Tensor, counts_WQ: Tensor) -> Tensor:
    """[H], over those queries that count."""
    return (value_BWHQ * counts_WQ[:, None]).sum((0, 1, 3)) / (counts_WQ.sum() * len(value_BWHQ))


# -- listening


@dataclass
class _Heard:
    """What a module was given (Swin's: what its block was given) and its weights [B or B · W, H, Q, K]."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    weights: Tensor = field(repr=False)


def _modules(tower: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of a tower by name.

    Raises:
        DoesNotApply: there are none, or some of them are of an unknown kind.
    """
    known = {name: module for name, module in tower.named_modules() if isinstance(module, KNOWN)}
    around = re.compile("|".join([rf"{re.escape(name)}(\..*)?" for name in known] or ["(?!)"]))
    unknown = {
        f"{type(module).__name__} ({name})"
        for name, module in tower.named_modules()
        if re.search("Attention|Attn", type(module).__name__)
        and not around.fullmatch(name)
        and not any(one.startswith(f"{name}." if name else "") for one in known)
    }
    kind = type(getattr(tower, "trunk", tower)).__name__
    choices = "ViT, DeiT, EVA, BEiT and Swin of timm or torchvision, the ViT and the ResNet of CLIP, and attention pools"
    if unknown:
        raise DoesNotApply(f"the image tower {kind} has attention of another kind, {sorted(unknown)[0]}; known are {choices}")
    if not known:
        raise DoesNotApply(f"the image tower {kind} has no attention; this lens is for {choices}")
    return known


def refuse_size(tower: nn.Module, image_BCHW: Tensor) -> None:
    """Refuse images that the tower cannot take.

    Raises:
        ValueError: they are smaller than a patch, or of another size than the tower is built for.
    """
    size = tuple(image_BCHW.shape[-2:])
    patch = patch_of(tower)
    if patch is not None and (size[0] < patch[0] or size[1] < patch[1]):
        raise ValueError(f"an image of {_by(size)} pixels is smaller than the patch of {_by(patch)}")
    tower = getattr(tower, "trunk", tower)
    embed = getattr(tower, "patch_embed", None)
    built = getattr(embed, "img_size", None) if getattr(embed, "strict_img_size", False) else getattr(tower, "image_size", None)
    if built is not None and _pair(built) != size:
        raise ValueError(
            f"the tower takes images of {_by(_pair(built))} pixels, not {_by(size)}; positions.at_size gives it at others"
        )


def patch_of(tower: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of pixels in a patch; None where the tower has no patches."""
    tower = getattr(tower, "trunk", tower)
    patch = getattr(tower, "patch_size", getattr(getattr(tower, "patch_embed", None), "patch_size", None))
    return None if patch is None else _pair(patch)


@contextmanager
def _listening(tower: nn.Module, modules: dict[str, nn.Module]) -> Iterator[list[_Heard]]:
    """While it is on, these modules are run in plain steps; what is heard is listed in order."""
    heard: list[_Heard] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, block: nn.Module, args: tuple[Any, ...]) -> None:
        shapes[name] = tuple(args[0].shape)  # [B, h, w, C], which timm's block cuts into windows before its attention

    def listen(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        recomputed, weights = again(module, args, kwargs, output)
        heard.append(_Heard(name, module, shapes.get(name, tuple(args[0].shape)), weights))
        return recomputed

    hooks = [module.register_forward_hook(partial(listen, name), with_kwargs=True) for name, module in modules.items()]
    for name, module in modules.items():
        if isinstance(module, TIMM_WINDOWS):
            hooks.append(tower.get_submodule(_above(name)).register_forward_pre_hook(partial(note, name)))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _above(name: str) -> str:
    return name.rpartition(".")[0]


# -- where the tokens lie


def _layer(tower: nn.Module, image_BCHW: Tensor, heard: _Heard, gradient: Tensor | None) -> LayerAttention:
    kind = _windowed if isinstance(heard.module, WINDOWS) else _map_pool if isinstance(heard.module, POOLS) else _tokens
    layer = kind(tower, image_BCHW, heard)
    local_BWHQK, gradient_BWHQK = (
        None if one is None else one.detach().unflatten(0, (len(image_BCHW), -1))[..., : layer.query_WQ.shape[1], :]
        for one in (heard.weights, gradient)
    )
    assert local_BWHQK is not None
    return replace(layer, local_BWHQK=local_BWHQK, gradient_BWHQK=gradient_BWHQK)


def _tokens(tower: nn.Module, image_BCHW: Tensor, heard: _Heard) -> LayerAttention:
    """All tokens attend to all, or a few queries pool them."""
    patch = patch_of(tower)
    if patch is None:
        raise ValueError(f"where the tokens of {heard.name} lie in the image is not known: the tower has no patches")
    queries, keys = heard.weights.shape[-2:]
    embed = getattr(getattr(tower, "trunk", tower), "patch_embed", None)
    sides = tuple(image_BCHW.shape[-2:])
    grid = _pair(embed.dynamic_feat_size(sides)) if embed is not None else (sides[0] // patch[0], sides[1] // patch[1])
    prefix = keys - grid[0] * grid[1]
    if not 0 <= prefix <= getattr(getattr(tower, "trunk", tower), "num_prefix_tokens", 1):
        raise ValueError(f"{heard.name} attends to {keys} things, which are not the {_by(grid)} places of the image")
    apart = _pair(getattr(embed, "feature_ratio", (1, 1)))  # of what the patches are cut from, where that is a network's map
    stride = (patch[0] * apart[0], patch[1] * apart[1])
    query_WQ, key_WK = torch.arange(queries)[None], torch.arange(keys)[None]
    return LayerAttention(heard.name, heard.weights, query_WQ, key_WK, prefix, grid, stride, pools=queries != keys)


def _map_pool(tower: nn.Module, image_BCHW: Tensor, heard: _Heard) -> LayerAttention:
    """The mean of a map [B, C, h, w] (or a class token) stands before its places; only what it attends to is given out."""
    grid = (heard.shape[2], heard.shape[3])
    stride = (image_BCHW.shape[2] / grid[0], image_BCHW.shape[3] / grid[1])
    key_WK = torch.arange(heard.weights.shape[-1])[None]
    return LayerAttention(heard.name, heard.weights, torch.zeros(1, 1, dtype=torch.long), key_WK, 1, grid, stride, pools=True)


def _windowed(tower: nn.Module, image_BCHW: Tensor, heard: _Heard) -> LayerAttention:
    """Windows of a map [B, h, w, C], shifted by a cyclic roll. timm rolls and then pads, torchvision pads and then rolls."""
    grid = (heard.shape[1], heard.shape[2])
    pads_first = not isinstance(heard.module, TIMM_WINDOWS)
    holder: Any = heard.module if pads_first else tower.get_submodule(_above(heard.name))
    size, shift = _pair(tuple(holder.window_size)), _pair(tuple(holder.shift_size))
    if pads_first:  # torchvision does not shift along a side that is one window
        shift = (shift[0] * (size[0] < grid[0]), shift[1] * (size[1] < grid[1]))
    place_WM = _places(grid, size, shift, pads_first)
    stride = (_power_of_two(image_BCHW.shape[2] / grid[0]), _power_of_two(image_BCHW.shape[3] / grid[1]))
    return LayerAttention(heard.name, heard.weights, place_WM, place_WM, 0, grid, stride, Window(size, shift))


def _places(grid: tuple[int, int], size: tuple[int, int], shift: tuple[int, int], pads_first: bool) -> Tensor:
    """Which place of the grid each place of each window is [W, size]; −1 for padding."""
    place_hw, padding = torch.arange(grid[0] * grid[1]).view(grid), (0, -grid[1] % size[1], 0, -grid[0] % size[0])
    if pads_first:
        place_hw = F.pad(place_hw, padding, value=-1)
    place_hw = place_hw.roll((-shift[0], -shift[1]), (0, 1))
    if not pads_first:
        place_hw = F.pad(place_hw, padding, value=-1)
    return place_hw.unflatten(0, (-1, size[0])).unflatten(2, (-1, size[1])).transpose(1, 2).flatten(0, 1).flatten(1)


def _power_of_two(ratio: float) -> float:
    """Swin's strides, where the image does not divide evenly."""
    return float(2 ** round(log2(ratio)))


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return int(height), int(width)


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
