"""Train-free dense readout: what an image tower sees at each place, in the joint embedding space.

A place is read as the model would read a picture that is this place everywhere: its own final norm, pooling and head are applied
to that one token or cell. So nothing is invented for any architecture: a mean pools to the place itself, attention pooling to the
value path (all keys are equal), and whatever norm or projection follows is the model's.

What a transformer's last block mixes into each place is another matter: it was trained for the class token alone. A `Readout` says
what stands in its stead, and two papers' worth of ablations say that it matters more than anything else. Convolutional towers
and Swin have no such block; they are read from their feature map.

Features keep their magnitude: on mean-pooled towers it says where the evidence is.

Legend: B batch, D embedding, W width, h w the grid, P places (h · w), N tokens (P and the prefix), H heads, K channels a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import AbsAttentionPool2d, TimmModel
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import Attention
from timm.models.vision_transformer import Block
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from sightline.models.towers import Towers


@dataclass(frozen=True)
class Readout:
    """How the last block of a transformer mixes places.

    Attributes:
        attention: whose similarity is softmaxed (q with k is what was trained; `q-q+k-k` is the sum of two softmaxes), or `value`:
            each place keeps its own.
        neighbours: σ in patches of a Gaussian of the distance that is added to the similarity of patches; 0 for none.
        residual: whether what the block was given is added to what it attends to.
        feed_forward: whether its feed-forward part is applied.
    """

    attention: Literal["q-k", "q-q", "k-k", "v-v", "q-q+k-k", "value"]
    neighbours: float = 0.0
    residual: bool = False
    feed_forward: bool = False


UNCHANGED = "clip"
READOUTS = {
    UNCHANGED: Readout("q-k", residual=True, feed_forward=True),
    "maskclip": Readout("value"),  # Zhou et al. 2022
    "sclip": Readout("q-q+k-k", residual=True, feed_forward=True),  # Wang et al. 2024
    "clearclip": Readout("q-q"),  # Lan et al. 2024
    "naclip": Readout("k-k", neighbours=5.0),  # Hajimiri et al. 2025, "reduced"
    "v-v": Readout("v-v"),
}
DEFAULT = "naclip"  # of transformers; see docs/segmentation.md


@dataclass(frozen=True)
class Dense:
    """What a tower says of images.

    Attributes:
        map_BDhw: of each place.
        pooled_BD: of the whole image, from the same tokens; with the readout `clip` it is what `encode_image` gives.
    """

    map_BDhw: Tensor
    pooled_BD: Tensor


def dense_features(towers: Towers, image_BCHW: Tensor, readout: str = "") -> Tensor:
    """Features [B, D, h, w] of normalised images [B, 3, H, W], not scaled to unit length; see `read`."""
    return read(towers, image_BCHW, readout).map_BDhw


def read(towers: Towers, image_BCHW: Tensor, readout: str = "") -> Dense:
    """Both the places and the pooled embedding of normalised images [B, 3, H, W].

    Args:
        readout: one of READOUTS; "" is the default for the kind of tower.

    Raises:
        ValueError: there is no such readout, or the tower cannot be read (so).
    """
    if readout and readout not in READOUTS:
        raise ValueError(f"there is no readout {readout!r}; choose {', '.join(READOUTS)}")
    visual = towers.visual
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
        return _open_clip_vit(visual, image_BCHW, READOUTS[readout or DEFAULT])
    if isinstance(visual, ModifiedResNet):
        refuse_readout(visual, readout)
        return _modified_resnet(visual, image_BCHW)
    if isinstance(visual, TimmModel) and not any(isinstance(part, AbsAttentionPool2d) for part in visual.head):
        return _timm(visual, image_BCHW, readout)
    raise ValueError(
        f"the image tower {type(getattr(visual, 'trunk', visual)).__name__} cannot be read densely: its pooling is bound to the "
        "places of one size; segmentation works with open_clip's ViT and ResNet, timm's ViT, ConvNeXt, Swin and the like, and "
        "sightline_conv"
    )


def refuse_readout(tower: nn.Module, readout: str) -> None:
    """Refuse to change a last block that is not there, or not of the known kind.

    Raises:
        ValueError: another readout than the model's own is asked for.
    """
    if readout not in ("", UNCHANGED):
        raise ValueError(
            f"the image tower {type(tower).__name__} has no attention that readout {readout!r} could replace; give readout "
            f"{UNCHANGED!r}, which reads it as it is"
        )


# -- the kinds of towers


def _open_clip_vit(visual: VisionTransformer, image_BCHW: Tensor, readout: Readout) -> Dense:
    grid = tuple(size // patch for size, patch in zip(image_BCHW.shape[-2:], visual.patch_size, strict=True))
    sequence_first = not visual.transformer.batch_first
    blocks = visual.transformer.resblocks
    last = blocks[-1]
    if type(last) is not ResidualAttentionBlock:
        raise ValueError(f"the blocks of this image tower are {type(last).__name__}, whose attention is not known here")
    tokens_BNW = visual._embeds(image_BCHW)
    if sequence_first:
        tokens_BNW = tokens_BNW.transpose(0, 1)
    for block in blocks[:-1]:
        tokens_BNW = block(tokens_BNW)
    if sequence_first:
        tokens_BNW = tokens_BNW.transpose(0, 1)

    qkv = F.linear(last.ln_1(tokens_BNW), last.attn.in_proj_weight, last.attn.in_proj_bias)
    query, key, value = qkv.unflatten(2, (3, last.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed_BNW = last.ls_1(last.attn.out_proj(mix(query, key, value, readout, grid, prefix=1)))
    tokens_BNW = finish(tokens_BNW, mixed_BNW, readout, lambda x: last.ls_2(last.mlp(last.ln_2(x))))

    def embed(some_BNW: Tensor) -> Tensor:
        pooled, _ = visual._pool(some_BNW)
        return pooled if visual.proj is None else pooled @ visual.proj

    return Dense(by_place(tokens_BNW, 1, grid, embed), embed(tokens_BNW))


def _timm(visual: TimmModel, image_BCHW: Tensor, readout: str) -> Dense:
    trunk = visual.trunk
    last = trunk.blocks[-1] if isinstance(trunk, TimmViT) and len(trunk.blocks) else None
    if last is not None and type(last) is Block and type(last.attn) is Attention and last.attn.gate is None:
        features = _timm_tokens(trunk, last, image_BCHW, READOUTS[readout or DEFAULT])
    else:
        refuse_readout(trunk, readout)
        features = trunk.forward_features(image_BCHW)

    def embed(some: Tensor) -> Tensor:
        return visual.head(trunk.forward_head(some))

    if features.ndim == 3:
        prefix, grid = getattr(trunk, "num_prefix_tokens", 0), grid_of(trunk, image_BCHW)
        return Dense(by_place(features, prefix, grid, embed), embed(features))
    channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
    cells_BhwC = features if channels_last else features.permute(0, 2, 3, 1)
    single = cells_BhwC.flatten(0, 2)[:, None, None] if channels_last else cells_BhwC.flatten(0, 2)[:, :, None, None]
    map_BhwD = embed(single).unflatten(0, cells_BhwC.shape[:3])
    return Dense(map_BhwD.permute(0, 3, 1, 2), embed(features))


def grid_of(trunk: nn.Module, image_BCHW: Tensor) -> tuple[int, ...]:
    """Rows and columns of a timm trunk's tokens.

    Raises:
        ValueError: it does not say how its tokens lie in the image.
    """
    size = getattr(getattr(trunk, "patch_embed", None), "dynamic_feat_size", None)
    if size is None:
        raise ValueError(f"the image tower {type(trunk).__name__} cannot be read densely: where its tokens lie is not known")
    return tuple(size(image_BCHW.shape[-2:]))


def _timm_tokens(trunk: TimmViT, last: Block, image_BCHW: Tensor, readout: Readout) -> Tensor:
    """The tokens after the final norm [B, N, W], with the last block as the readout has it."""
    patches = trunk.patch_embed(image_BCHW)
    grid = grid_of(trunk, image_BCHW)
    tokens_BNW = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(patches)))
    for block in trunk.blocks[:-1]:
        tokens_BNW = block(tokens_BNW)
    attention = last.attn
    qkv = attention.qkv(last.norm1(tokens_BNW))
    query, key, value = qkv.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = mix(attention.q_norm(query), attention.k_norm(key), value, readout, grid, trunk.num_prefix_tokens)
    mixed_BNW = last.ls1(attention.proj(attention.norm(mixed)))
    return trunk.norm(finish(tokens_BNW, mixed_BNW, readout, lambda x: last.ls2(last.mlp(last.norm2(x)))))


def _modified_resnet(visual: ModifiedResNet, image_BCHW: Tensor) -> Dense:
    """CLIP's ResNets: their attention pooling knows places by position, so a place is read by its value path (MaskCLIP)."""
    map_BChw = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image_BCHW)))))
    pool = visual.attnpool
    return Dense(pool.c_proj(pool.v_proj(map_BChw.permute(0, 2, 3, 1))).permute(0, 3, 1, 2), pool(map_BChw))


# -- what they share


def by_place(tokens_BNW: Tensor, prefix: int, grid: tuple[int, ...], embed: Callable[[Tensor], Tensor]) -> Tensor:
    """Each patch token by itself through the pooling and the head: [B, D, h, w]."""
    patches_BPW = tokens_BNW[:, prefix:]
    alone = patches_BPW.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)  # in the place of every token that pooling may look at
    return embed(alone).unflatten(0, patches_BPW.shape[:2]).transpose(1, 2).unflatten(2, grid)


def finish(tokens_BNW: Tensor, mixed_BNW: Tensor, readout: Readout, feed_forward: Callable[[Tensor], Tensor]) -> Tensor:
    """The rest of a block."""
    out_BNW = tokens_BNW + mixed_BNW if readout.residual else mixed_BNW
    if readout.feed_forward:
        fed_BNW = feed_forward(out_BNW)
        out_BNW = out_BNW + fed_BNW if readout.residual else fed_BNW
    return out_BNW


def mix(query: Tensor, key: Tensor, value: Tensor, readout: Readout, grid: tuple[int, ...], prefix: int) -> Tensor:
    """What attention gives [B, N, W] of queries, keys and values [B, H, N, K]; similarities and softmax are in float32.

    softmax(x yᵀ/√K + G) v, where G[i, j] = exp(−|i − j|² / 2σ²) between patches and 0 for prefix tokens.
    """
    if readout.attention == "value":
        return value.transpose(1, 2).flatten(2)
    parts = {"q": query.float(), "k": key.float(), "v": value.float()}
    weights_BHNN = torch.zeros((), device=value.device)
    for pair in readout.attention.split("+"):
        first, second = (parts[name] for name in pair.split("-"))
        logits_BHNN = first @ second.transpose(-1, -2) / key.shape[-1] ** 0.5
        if readout.neighbours:
            logits_BHNN[:, :, prefix:, prefix:] += neighbourhood(grid, readout.neighbours).to(logits_BHNN)
        weights_BHNN = weights_BHNN + logits_BHNN.softmax(-1)
    return (weights_BHNN @ parts["v"]).transpose(1, 2).flatten(2).to(value.dtype)


def neighbourhood(grid: tuple[int, ...], sigma: float) -> Tensor:
    """G [P, P]: a Gaussian of the distance between patches, 1 at distance 0."""
    place_P2 = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
    return torch.exp(-torch.cdist(place_P2, place_P2).square() / (2 * sigma**2))
