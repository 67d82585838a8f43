"""What a tower knows of where: one vector a place, and the cosine between two of them.

A learned or a sin-cos embedding is that vector itself, which is added to the token. Rotary positions turn pairs of channels of
queries and keys by angles θ; their vector is all cos θ and sin θ, so that the cosine between places i and j is the mean of
cos(θᵢ − θⱼ): what rotation leaves of the product of a query and a key that are equal and have the same length in every pair (Su et
al. 2021, "RoFormer", eq. 16). Relative biases have no vector; they are a number for each offset.

The similarity of learned embeddings is that of Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words", figure 7 (centre).

Legend: P places in rows of a grid h w, D width, X prefix tokens, H heads, M places of a window.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import open_clip.modified_resnet
import open_clip.transformer
import timm.models.beit
import timm.models.swin_transformer
import timm.models.swin_transformer_v2
import torch
import torch.nn.functional as F
import torchvision.models.swin_transformer
import torchvision.models.vision_transformer
from timm.layers import PatchEmbed, build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor, nn

from sightline.models.lenses.attention import patch_of
from sightline.models.lenses.subject import DoesNotApply


@dataclass(frozen=True)
class Positions:
    """Position embeddings of one kind.

    Attributes:
        vector_PD: of each place.
        prefix_XD: of class and register tokens, where they have any.
        grid: rows and columns of places; one row for text.
    """

    kind: Literal["learned", "sin-cos", "rotary"]
    vector_PD: Tensor
    prefix_XD: Tensor
    grid: tuple[int, int]


def positions(tower: nn.Module) -> list[Positions]:
    """The embeddings that a tower adds, and the rotary ones that it turns by; most towers have one of them.

    Raises:
        DoesNotApply: it has neither.
    """
    tower = getattr(tower, "trunk", tower)
    grid, rope = _grid(tower), getattr(tower, "rope", None)
    found = [] if (table_ND := _table(tower)) is None else [_added(table_ND.detach(), grid)]
    if rope is not None:
        vector_PD = rotary(rope.get_embed(shape=list(grid)))
        found.append(Positions("rotary", vector_PD, vector_PD[:0], grid))
    if not found:
        other = "; relative_biases gives those that it has" if relative_biases(tower) else ""
        raise DoesNotApply(f"the tower {type(tower).__name__} has no position embeddings{other}")
    return found


def similarity(tower: nn.Module) -> Tensor:
    """Cosine between the position embeddings of any two places [P, P]: of those that are added, or else of the rotary."""
    return cosine(positions(tower)[0].vector_PD)


def cosine(vector_PD: Tensor) -> Tensor:
    """[P, P]."""
    unit_PD = F.normalize(vector_PD.float(), dim=-1)
    return unit_PD @ unit_PD.T


def by_offset(matrix_PP: Tensor, grid: tuple[int, int]) -> Tensor:
    """Means over all pairs at the same offset [..., 2h − 1, 2w − 1], from the first to the second; offset zero is in the middle."""
    height, width = grid
    row_P, column_P = torch.arange(height * width) // width, torch.arange(height * width) % width
    down_PP, across_PP = row_P - row_P[:, None] + height - 1, column_P - column_P[:, None] + width - 1
    offset = (down_PP * (2 * width - 1) + across_PP).flatten()
    sums = torch.zeros(*matrix_PP.shape[:-2], (2 * height - 1) * (2 * width - 1)).index_add(
        -1, offset, matrix_PP.flatten(-2).float()
    )
    return (sums / offset.bincount()).unflatten(-1, (2 * height - 1, 2 * width - 1))


# -- kinds


def sin_cos(grid: tuple[int, int], width: int) -> Positions:
    """Fixed sines and cosines: of the row and of the column, half of the channels each; of the index alone where there is one row.

    Vaswani et al. 2017, section 3.5; in two dimensions as in MoCo v3 (Chen et al. 2021).
    """
    if grid[0] == 1:
        frequency = 10000 ** -(torch.arange(width // 2) * 2 / width)
        angle = torch.arange(grid[1])[:, None] * frequency
        vector_PD = torch.cat([angle.sin(), angle.cos()], -1)
    else:
        vector_PD = build_sincos2d_pos_embed(list(grid), width)
    return Positions("sin-cos", vector_PD, vector_PD[:0], grid)


def rotary(embedding: Any) -> Tensor:
    """All sines and cosines of each place [P, D], from what timm's rotary modules give: both, or one tensor of both [..., P, ·].

    Where layers and heads have angles of their own (RoPE-Mixed, Heo et al. 2024), they are all in it: the cosine is their mean.
    """
    sin, cos = embedding if isinstance(embedding, tuple) else embedding.chunk(2, -1)
    both = torch.cat([sin, cos], -1).detach()
    return both.movedim(-2, 0).flatten(1)


def relative_biases(tower: nn.Module) -> dict[str, Tensor]:
    """What is added to logits by the offset of query and key, see `by_offset`: of each attention module [H, 2h − 1, 2w − 1]."""
    biases: dict[str, Tensor] = {}
    for name, module in tower.named_modules():
        for kind, bias_of in _BIASES:
            if isinstance(module, kind) and (bias_HMM := bias_of(module)) is not None:
                size: Any = module.window_size
                window = (int(size[0]), int(size[1]))
                extra = bias_HMM.shape[-1] - window[0] * window[1]  # BEiT's class token
                biases[name] = by_offset(bias_HMM[:, extra:, extra:].detach(), window)
    return biases


def _swin_v2_bias(module: Any) -> Tensor:
    """A small network of the offset on a log scale (Liu et al. 2022, "Swin Transformer V2", section 3.3), between 0 and 16."""
    table = module.cpb_mlp(module.relative_coords_table).view(-1, module.num_heads)
    area = module.window_size[0] * module.window_size[1]
    return 16 * torch.sigmoid(table[module.relative_position_index.view(-1)].view(area, area, -1).permute(2, 0, 1))


def _beit_bias(module: Any) -> Tensor | None:
    return None if module.relative_position_bias_table is None else module._get_rel_pos_bias()[0]


_BIASES: tuple[tuple[type[nn.Module], Callable[[Any], Tensor | None]], ...] = (
    (timm.models.swin_transformer.WindowAttention, lambda module: module._get_rel_pos_bias()[0]),
    (timm.models.swin_transformer_v2.WindowAttention, _swin_v2_bias),
    (torchvision.models.swin_transformer.ShiftedWindowAttention, lambda module: module.get_relative_position_bias()[0]),
    (timm.models.beit.Attention, _beit_bias),
)


def _table(tower: Any) -> Tensor | None:
    """The embeddings that are added to the tokens [N, D], prefix first."""
    if isinstance(tower, torchvision.models.vision_transformer.VisionTransformer):
        return tower.encoder.pos_embedding[0]
    if isinstance(tower, open_clip.modified_resnet.ModifiedResNet):
        return tower.attnpool.positional_embedding
    table = getattr(tower, "pos_embed", getattr(tower, "positional_embedding", None))
    if not isinstance(table, Tensor):
        return None
    return table[0] if table.ndim == 3 else table


def _grid(tower: Any) -> tuple[int, int]:
    if isinstance(tower, open_clip.modified_resnet.ModifiedResNet):
        return (tower.image_size // 32, tower.image_size // 32)
    if (grid := getattr(getattr(tower, "patch_embed", None), "grid_size", None)) is not None:
        return (grid[0], grid[1])
    if (patch := patch_of(tower)) is not None and (size := getattr(tower, "image_size", None)) is not None:
        height, width = size if isinstance(size, tuple) else (size, size)
        return (height // patch[0], width // patch[1])
    return (1, int(getattr(tower, "num_pos", 0)))  # text


def _added(table_ND: Tensor, grid: tuple[int, int]) -> Positions:
    """Sines and cosines come in pairs, so that every such vector is √(D/2) long; no learned ones are."""
    prefix = len(table_ND) - grid[0] * grid[1]
    if table_ND.ndim != 2 or prefix < 0 or grid == (1, 0):
        raise DoesNotApply(
            f"position embeddings of shape {list(table_ND.shape)} for a grid of {grid[0]}×{grid[1]} are not known here"
        )
    vector_PD = table_ND[prefix:]
    even = torch.allclose(vector_PD.norm(dim=-1), torch.tensor((table_ND.shape[1] / 2) ** 0.5), rtol=1e-4)
    return Positions("sin-cos" if even else "learned", vector_PD, table_ND[:prefix], grid)


# -- another resolution


def interpolate(vector_PD: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """The embeddings at another grid, bicubic with antialiasing, as timm and open_clip do on loading."""
    return resample_abs_pos_embed(vector_PD[None], list(new_grid), old_size=list(grid), num_prefix_tokens=0)[0]


def at_size(tower: nn.Module, size: int) -> nn.Module:
    """A copy of an image tower that takes images of size × size pixels; its positions are interpolated, whatever their kind.

    A tower that has no positions and takes images of any size is copied as it is. Preprocessing must be given the same size.

    Raises:
        ValueError: the tower is bound to its size, or the image would be smaller than a patch.
    """
    patch = patch_of(tower)
    if patch is not None and size < max(patch):
        raise ValueError(f"an image of {size}×{size} pixels is smaller than the patch of {patch[0]}×{patch[1]}")
    copy = deepcopy(tower)
    trunk: Any = getattr(copy, "trunk", copy)
    if hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=(size, size))
    elif isinstance(trunk, open_clip.transformer.VisionTransformer | torchvision.models.vision_transformer.VisionTransformer):
        _resize_vit(trunk, size)
    elif hasattr(trunk, "image_size") or any(
        isinstance(module, PatchEmbed) and module.strict_img_size for module in trunk.modules()
    ):
        raise ValueError(f"the image tower {type(trunk).__name__} is bound to the image size that it was built for")
    return copy


def _resize_vit(tower: Any, size: int) -> None:
    """open_clip's and torchvision's."""
    grid, table_ND = _grid(tower), _table(tower)
    assert table_ND is not None
    of_torchvision = isinstance(tower, torchvision.models.vision_transformer.VisionTransformer)
    tower.image_size = size if of_torchvision else (size, size)
    new_grid, prefix = _grid(tower), len(table_ND) - grid[0] * grid[1]
    resized = torch.cat([table_ND[:prefix], interpolate(table_ND[prefix:], grid, new_grid)]).detach()
    if of_torchvision:
        tower.encoder.pos_embedding, tower.seq_length = nn.Parameter(resized[None]), len(resized)
    else:
        tower.positional_embedding = nn.Parameter(resized, requires_grad=table_ND.requires_grad)
        tower.grid_size = new_grid
