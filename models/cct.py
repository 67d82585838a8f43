"""The Compact Convolutional Transformer (Hassani et al. 2021, "Escaping the Big Data Paradigm with Compact Transformers").

A ViT with two other ends. Instead of patches, tokens are what a few convolutions, ReLUs and max pools leave of the image; instead
of a class token, an attention of one learnt query pools them. Between them stand timm's own blocks, so that a ViT, timm's hybrids
(`vit_tiny_r_s16_p8_224`: a `HybridEmbed` too) and a CCT of equal FLOPs differ in their inductive bias only. The authors' code has
one oddity that ViT's encoder has not, and neither has this: it normalises the residual stream itself after attention.

`timm.create_model("sightline_cct", conv_layers=1)` is CCT-7/3×1 for images of 32 pixels.

Legend: B batch, C channels, H W height and width, N tokens, D their width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import HybridEmbed
from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

# timm's registry reads this name: the position embeddings are for one size of image.
default_cfgs = generate_default_cfgs(
    {
        "sightline_cct": {
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "classifier": "head",
            "first_conv": "patch_embed.backbone.0",
        }
    }
)


class SequencePool(nn.Module):
    """Tokens [B, N, D] → their mean [B, D], weighted by the softmax of a linear map of each (section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(width, 1)

    def forward(self, x_BND: Tensor) -> Tensor:
        weights_BN1: Tensor = self.weigh(x_BND).softmax(dim=1)
        return (weights_BN1.transpose(1, 2) @ x_BND).squeeze(1)


def tokenizer(in_chans: int, width: int, outputs: int, layers: int, kernel: int, stride: int) -> nn.Sequential:
    """[B, in_chans, H, W] → [B, outputs, ·, ·]: each layer a convolution without bias, ReLU, and a 3×3 max pool of stride 2."""
    parts: list[nn.Module] = []
    for layer in range(layers):
        convolution = nn.Conv2d(
            width if layer else in_chans,
            outputs if layer == layers - 1 else width,
            kernel,
            stride=stride,
            padding=max(1, kernel // 2),
            bias=False,
        )
        nn.init.kaiming_normal_(convolution.weight)
        parts += [convolution, nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
    return nn.Sequential(*parts)


@register_model
def sightline_cct(
    pretrained: bool = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: Any = None,
    *,
    in_chans: int = 3,
    embed_dim: int = 256,
    conv_layers: int = 1,
    conv_kernel: int = 3,
    conv_stride: int | None = None,
    conv_width: int = 64,
    **options: Any,
) -> VisionTransformer:
    """timm's entry point; as it stands, CCT-7/3×1 for images of 32 pixels. Further options are those of timm's VisionTransformer.

    Args:
        conv_layers, conv_kernel: the two numbers of a name such as CCT-7/3×1, the kernel first.
        conv_stride: None for the authors' choice, max(1, kernel / 2 − 1): 1 for 3×3, 2 for 7×7.
        conv_width: channels between the convolutions.
    """
    if pretrained:
        raise ValueError("sightline_cct has no pretrained weights")
    options.pop("cache_dir", None)
    stride = max(1, conv_kernel // 2 - 1) if conv_stride is None else conv_stride
    backbone = tokenizer(in_chans, conv_width, embed_dim, conv_layers, conv_kernel, stride)
    ours = {"img_size": 32, "depth": 7, "num_heads": 4, "mlp_ratio": 2.0, "qkv_bias": False} | options
    model = VisionTransformer(
        patch_size=1,
        in_chans=in_chans,
        embed_dim=embed_dim,
        class_token=False,
        global_pool="map",
        embed_layer=partial(HybridEmbed, backbone=backbone, proj=False),
        **ours,
    )
    model.attn_pool = SequencePool(embed_dim)  # in the place of timm's, which is a block of several heads
    nn.init.trunc_normal_(model.attn_pool.weigh.weight, std=0.02)
    nn.init.zeros_(model.attn_pool.weigh.bias)
    model.pretrained_cfg = model.default_cfg = default_cfgs["sightline_cct"].default.to_dict()
    return model
