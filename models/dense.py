"""Train-free dense readout: what an image tower sees at each place, in the joint embedding space.

Three kinds of towers can be read:
- pooled by the mean, with a linear projection after it: the projected map averages exactly to the image's embedding, nothing is
  approximated;
- open_clip's ViT and timm's ViT with a class token: the last block's attention is replaced by key-key similarity with a Gaussian
  neighbour bias, and its residual and feed-forward are left out (NACLIP "reduced", Hajimiri et al. 2025).
Features keep their magnitude: on mean-pooled towers it says where the evidence is.

Legend: B batch, D embedding, h w the grid, N patches plus prefix tokens, H heads, K channels a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn

from sightline.models.towers import Towers

NEIGHBOUR_SIGMA = 5.0  # in patches


def dense_features(towers: Towers, image_BCHW: Tensor) -> Tensor:
    """Features [B, D, h, w] of normalised images [B, 3, H, W], not scaled to unit length.

    Raises:
        ValueError: the tower is of a kind that cannot be read densely.
    """
    visual = towers.visual
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type == "tok":
        return _open_clip_vit(visual, image_BCHW)
    if isinstance(visual, TimmModel):
        trunk, projection = visual.trunk, set(dict(visual.head.named_children()))
        if isinstance(trunk, TimmViT) and trunk.num_prefix_tokens and trunk.global_pool == "token":
            return _timm_vit(trunk, visual.head, image_BCHW)
        if getattr(trunk, "pools_by_mean", False) and projection <= {"drop", "proj"}:  # a linear one
            return _projected(visual.head, trunk.forward_features(image_BCHW))
    raise ValueError(
        f"the image tower {type(getattr(visual, 'trunk', visual)).__name__} cannot be read densely; segmentation works with "
        "open_clip's ViT, timm's ViT with a class token, and sightline_conv"
    )


def _projected(head: nn.Module, map_BChw: Tensor) -> Tensor:
    return head(map_BChw.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _open_clip_vit(visual: VisionTransformer, image_BCHW: Tensor) -> Tensor:
    grid = tuple(size // patch for size, patch in zip(image_BCHW.shape[-2:], visual.conv1.kernel_size, strict=True))
    tokens_BND = visual._embeds(image_BCHW)
    blocks = visual.transformer.resblocks
    if not visual.transformer.batch_first:
        tokens_BND = tokens_BND.transpose(0, 1)
    for block in blocks[:-1]:
        tokens_BND = block(tokens_BND)
    if not visual.transformer.batch_first:
        tokens_BND = tokens_BND.transpose(0, 1)
    last = blocks[-1]
    query_key_value = F.linear(last.ln_1(tokens_BND), last.attn.in_proj_weight, last.attn.in_proj_bias)
    mixed_BND = last.ls_1(last.attn.out_proj(neighbour_attention(query_key_value, last.attn.num_heads, grid)))
    patches_BND = visual.ln_post(mixed_BND[:, 1:])
    if visual.proj is not None:
        patches_BND = patches_BND @ visual.proj
    return patches_BND.transpose(1, 2).unflatten(2, grid)


def _timm_vit(trunk: TimmViT, head: nn.Module, image_BCHW: Tensor) -> Tensor:
    patches = trunk.patch_embed(image_BCHW)
    grid = tuple(size // patch for size, patch in zip(image_BCHW.shape[-2:], trunk.patch_embed.patch_size, strict=True))
    tokens_BND = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(patches)))
    for block in trunk.blocks[:-1]:
        tokens_BND = block(tokens_BND)
    last = trunk.blocks[-1]
    attention = neighbour_attention(
        last.attn.qkv(last.norm1(tokens_BND)), last.attn.num_heads, grid, prefix=trunk.num_prefix_tokens
    )
    patches_BND = trunk.norm(last.ls1(last.attn.proj(attention)))[:, trunk.num_prefix_tokens :]
    return head(patches_BND).transpose(1, 2).unflatten(2, grid)


def neighbour_attention(qkv_BN3D: Tensor, heads: int, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """softmax(k kᵀ/√K + G) v with G[i, j] = exp(−|i − j|² / 2σ²) between patches and 0 for prefix tokens: [B, N, D]."""
    _, key_BHNK, value_BHNK = qkv_BN3D.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).float()
    logits_BHNN = key_BHNK @ key_BHNK.transpose(-1, -2) / key_BHNK.shape[-1] ** 0.5
    place_P2 = torch.cartesian_prod(torch.arange(grid[0]), torch.arange(grid[1])).to(logits_BHNN)
    bias_PP = torch.exp(-torch.cdist(place_P2, place_P2).square() / (2 * NEIGHBOUR_SIGMA**2))
    logits_BHNN[:, :, prefix:, prefix:] += bias_PP
    return (logits_BHNN.softmax(-1) @ value_BHNK).transpose(1, 2).flatten(2).to(qkv_BN3D.dtype)
