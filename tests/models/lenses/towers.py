"""Small towers of every kind that has attention or positions, with random weights that are sharp enough to attend unevenly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import Transformer, VisionTransformer
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import nn

TIMM = {"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "num_classes": 5, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
CLIP = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 2, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6}
VIT_OF_TORCHVISION = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
SWIN_OF_TORCHVISION = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": [4, 4]}


def unfused(tower: nn.Module, fused: bool = False) -> nn.Module:
    for module in tower.modules():
        if hasattr(module, "fused_attn"):
            module.__dict__["fused_attn"] = fused
    return tower


def sequence_first() -> nn.Module:
    """The transformer of an older open_clip, whose tokens are [N, B, W]."""
    tower = VisionTransformer(**CLIP)
    tower.transformer = Transformer(16, 2, 2, batch_first=False)
    return tower


@dataclass(frozen=True)
class Kind:
    """A tower, and what its attention is expected to be: prefix and grid of each module, in order."""

    build: Callable[[], Any]
    tokens: tuple[tuple[int, int, int], ...]
    size: int = 32


ONE, NONE = (1, 4, 4), (0, 4, 4)
STAGES = ((0, 8, 8), (0, 8, 8), (0, 4, 4), (0, 4, 4))
ODD = ((0, 10, 10), (0, 10, 10), (0, 5, 5), (0, 5, 5))  # windows of 4 pad these
KINDS = {
    "ViT": Kind(partial(TimmViT, **TIMM), (ONE, ONE)),
    "ViT, not fused": Kind(lambda: unfused(TimmViT(**TIMM)), (ONE, ONE)),
    "ViT, norms and registers": Kind(partial(TimmViT, qk_norm=True, scale_attn_norm=True, reg_tokens=2, **TIMM), ((3, 4, 4),) * 2),
    "ViT, dynamic size": Kind(partial(TimmViT, dynamic_img_size=True, **TIMM), ((1, 5, 5),) * 2, 40),
    "ViT, attention pool": Kind(partial(TimmViT, global_pool="map", class_token=False, **TIMM), (NONE, NONE, NONE)),
    "EVA": Kind(partial(Eva, use_rot_pos_emb=True, **TIMM), (ONE, ONE)),
    "EVA, rotary only": Kind(
        partial(Eva, use_rot_pos_emb=True, use_abs_pos_emb=False, attn_type="rope", rope_type="dinov3", **TIMM), (ONE, ONE)
    ),
    "EVA, mixed": Kind(partial(Eva, use_rot_pos_emb=True, use_abs_pos_emb=False, rope_type="mixed", **TIMM), (ONE, ONE)),
    "BEiT": Kind(partial(Beit, use_rel_pos_bias=True, use_abs_pos_emb=False, **TIMM), (ONE, ONE)),
    "ViT, relative": Kind(partial(VisionTransformerRelPos, **TIMM), (NONE, NONE)),
    "Swin": Kind(partial(SwinTransformer, **SWIN), STAGES),
    "Swin, fused": Kind(lambda: unfused(SwinTransformer(**SWIN), fused=True), STAGES),
    "Swin, padded": Kind(partial(SwinTransformer, **SWIN | {"img_size": 40}, always_partition=True), ODD, 40),
    "Swin V2": Kind(partial(SwinTransformerV2, **SWIN), STAGES),
    "ViT of torchvision": Kind(partial(torchvision.models.VisionTransformer, **VIT_OF_TORCHVISION), (ONE, ONE)),
    "Swin of torchvision": Kind(partial(torchvision.models.SwinTransformer, **SWIN_OF_TORCHVISION), STAGES),
    "Swin of torchvision, padded": Kind(partial(torchvision.models.SwinTransformer, **SWIN_OF_TORCHVISION), ODD, 40),
    "CLIP": Kind(partial(VisionTransformer, **CLIP), (ONE, ONE)),
    "CLIP, sequence first": Kind(sequence_first, (ONE, ONE)),
    "CLIP, norms": Kind(partial(VisionTransformer, qk_norm=True, **CLIP), (ONE, ONE)),
    "CoCa": Kind(partial(VisionTransformer, attentional_pool=True, attn_pooler_queries=3, attn_pooler_heads=2, **CLIP), (ONE,) * 3),
    "CoCa, parallel": Kind(
        partial(
            VisionTransformer, attentional_pool="parallel", attn_pooler_queries=3, attn_pooler_heads=2, **CLIP | {"output_dim": 16}
        ),
        (ONE,) * 4,
    ),
    "ResNet of CLIP": Kind(
        partial(ModifiedResNet, layers=[1, 1, 1, 1], output_dim=6, heads=2, image_size=64, width=4), ((1, 2, 2),), 64
    ),
    "pool of timm": Kind(partial(TimmModel, "resnet10t", 6, 64, "abs_attn", ""), ((1, 2, 2),), 64),
    "rotary pool of timm": Kind(partial(TimmModel, "resnet10t", 6, 64, "rot_attn", ""), ((1, 2, 2),), 64),
}


def tower(kind: str, sharp: float = 8.0) -> Any:
    """The tower of that kind in evaluation mode; its queries, keys and values are `sharp` times as large as drawn."""
    torch.manual_seed(0)
    built = KINDS[kind].build().eval()
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if "relative_position_bias_table" in name:
                nn.init.normal_(parameter)
            elif parameter.ndim == 2 and any(part in name for part in ("qkv", "kv.", "pool.q.", "in_proj", "q_proj", "k_proj")):
                parameter.mul_(sharp)
    return built


def images(kind: str, count: int = 2) -> torch.Tensor:
    size = KINDS[kind].size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))
