"""Language-driven segmentation (LSeg, Li et al. 2022): a decoder on an image tower gives each place an embedding that is compared
with those of label names, so labels that training never had may be asked for.

    taps        maps of the image tower at several depths, all at one grid (the finest of them)
    decoder     residual 3×3 convolutions; the grid doubles, optionally with a look at the pixels; 1×1 to the joint space
    a place     a unit vector [D], and where the truth has a background one number more: how much it is nothing of all that

The text tower is frozen: it is given, and decides what unseen labels can mean. Labels are compared one by one, so their order and
number do not matter.

Legend: B images, D embedding, C channels, H W pixels, h w the decoder's grid, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

TEMPERATURE = 0.07  # LSeg's, to start with


@dataclass(frozen=True)
class DenseHead:
    """A decoder.

    Attributes:
        taps: which blocks (of a ViT) or stages (of a convolutional tower) of the image tower it reads, counted from 0.
        widths: channels at the taps' grid, then after each doubling of the grid; multiples of 8.
        blocks: residual convolutions at the taps' grid.
        pixels: whether it looks at the image itself at the doubled grids, for edges finer than the tower's.
        background: whether it also learns the background, for truth that has one.
        image_embedding: what `encode_image` gives: the image tower's own, or the mean over the decoder's places (a tower without a
            text tower of its own has nothing else that fits the texts).
    """

    taps: tuple[int, ...]
    widths: tuple[int, ...] = (128,)
    blocks: int = 2
    pixels: bool = False
    background: bool = False
    image_embedding: Literal["tower", "places"] = "places"


class Residual(nn.Module):
    """x + conv(gelu(norm(x))): a pre-activation 3×3 block (He et al. 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.conv(F.gelu(self.norm(x_BCHW)))


class Decoder(nn.Module):
    """Maps of an image tower, and the image, to [B, D (+ 1), h, w]."""

    def __init__(self, channels: Sequence[int], head: DenseHead, embed_dim: int) -> None:
        super().__init__()
        first, last = head.widths[0], head.widths[-1]
        self.lateral = nn.ModuleList(nn.Conv2d(count, first, 1) for count in channels)
        self.mixing = nn.ModuleList(Residual(first) for _ in range(head.blocks))
        pairs = list(zip(head.widths, head.widths[1:], strict=False))
        self.narrow = nn.ModuleList(nn.Conv2d(wide, narrow, 1) for wide, narrow in pairs)
        self.look = nn.ModuleList(nn.Conv2d(3, narrow, 3, padding=1) for _, narrow in pairs if head.pixels)
        self.smooth = nn.ModuleList(Residual(narrow) for _, narrow in pairs)
        self.norm = nn.GroupNorm(8, last)
        self.out = nn.Conv2d(last, embed_dim + head.background, 1)

    def forward(self, maps: Sequence[Tensor], image_BCHW: Tensor | None) -> Tensor:
        finest = max((found.shape[-2:] for found in maps), key=lambda size: size[0])
        x = torch.stack([resized(conv(found), finest) for conv, found in zip(self.lateral, maps, strict=True)]).sum(0)
        for block in self.mixing:
            x = block(x)
        for step, (narrow, smooth) in enumerate(zip(self.narrow, self.smooth, strict=True)):
            x = resized(narrow(x), torch.Size(2 * side for side in x.shape[-2:]))
            if len(self.look):
                assert image_BCHW is not None
                x = x + self.look[step](F.adaptive_avg_pool2d(image_BCHW, (x.shape[2], x.shape[3])))
            x = smooth(x)
        return self.out(F.gelu(self.norm(x)))


class Lseg(nn.Module):
    """Both towers of a dual encoder and a decoder; called with images, or with what `taps` gave for them, it gives `places`."""

    def __init__(self, towers: Any, head: DenseHead, embed_dim: int) -> None:
        """Random weights for the decoder, drawn from torch's current generator.

        Raises:
            ValueError: the image tower has no such taps, or a width is no multiple of 8.
        """
        super().__init__()
        if not head.widths or any(width % 8 or width < 8 for width in head.widths):
            raise ValueError(f"model.dense.widths={list(head.widths)}; give multiples of 8")
        self.visual, self.text, self.logit_scale = towers.visual, towers.text, towers.logit_scale
        self.pixel_scale = nn.Parameter(torch.full((1,), log(1 / TEMPERATURE)))
        # Masks say nothing about what is behind the taps, nor about the scale of whole images.
        self.logit_scale.requires_grad_(False)
        for part in (getattr(self.visual, "head", None), getattr(self.visual, "proj", None)):
            if isinstance(part, nn.Module | nn.Parameter):
                part.requires_grad_(False)
        self.head, self.embed_dim = head, embed_dim
        self.channels = tap_channels(towers.visual, head.taps)
        self.decoder = Decoder(self.channels, head, embed_dim)

    def taps(self, image_BCHW: Tensor) -> list[Tensor]:
        """The image tower's maps [B, C, h, w] of normalised images."""
        return taps(self.visual, image_BCHW, self.head.taps)

    def forward(self, inputs_BCHW: Tensor) -> Tensor:
        """The places [B, D (+ 1), h, w]: unit vectors, then the logit of the background.

        Args:
            inputs_BCHW: normalised images, or (of a tower whose maps are kept) its taps one after the other.
        """
        if inputs_BCHW.shape[1] == 3:
            raw = self.decoder(self.taps(inputs_BCHW), inputs_BCHW)
        else:
            raw = self.decoder(inputs_BCHW.split(self.channels, dim=1), None)
        unit = F.normalize(raw[:, : self.embed_dim].float(), dim=1)
        return torch.cat([unit, raw[:, self.embed_dim :].float()], dim=1)

    def encode_image(self, image_BCHW: Tensor, normalize: bool = False) -> Tensor:
        if self.head.image_embedding == "tower":
            image_BD = self.visual(image_BCHW)
        else:
            image_BD = self(image_BCHW)[:, : self.embed_dim].mean((2, 3))
        return F.normalize(image_BD, dim=-1) if normalize else image_BD

    def encode_text(self, tokens_NT: Tensor, normalize: bool = False) -> Tensor:
        text_ND = self.text(tokens_NT)
        return F.normalize(text_ND, dim=-1) if normalize else text_ND


def place_logits(places_BXhw: Tensor, label_LD: Tensor, scale: Tensor) -> Tensor:
    """Logits [B, L (+ 1), h, w] of labels by their unit embeddings and, where the places have it, the background."""
    dim = label_LD.shape[1]
    logits = scale * torch.einsum("bdhw,ld->blhw", places_BXhw[:, :dim], label_LD)
    return torch.cat([logits, places_BXhw[:, dim:]], dim=1)


def taps(tower: Any, image_BCHW: Tensor, which: Sequence[int]) -> list[Tensor]:
    """Maps [B, C, h, w] at some depths of an open_clip tower or a timm trunk; those of a ViT go through its final norm."""
    if isinstance(tower, VisionTransformer):
        found = tower.forward_intermediates(
            image_BCHW, indices=list(which), normalize_intermediates=True, intermediates_only=True, stop_early=True
        )
        maps: list[Tensor] = found["image_intermediates"]
        return maps
    trunk = tower.trunk if isinstance(tower, TimmModel) else tower
    return list(trunk.forward_intermediates(image_BCHW, indices=list(which), norm=True, intermediates_only=True, stop_early=True))


def tap_channels(visual: nn.Module, which: Sequence[int]) -> list[int]:
    """Channels of each tap.

    Raises:
        ValueError: the tower has no such blocks or stages, or none that are known.
    """
    if isinstance(visual, VisionTransformer):
        every = [visual.ln_post.normalized_shape[0]] * len(visual.transformer.resblocks)
    else:
        trunk = getattr(visual, "trunk", None)
        every = [int(info["num_chs"]) for info in getattr(trunk, "feature_info", [])]
    if not which or any(not 0 <= tap < len(every) for tap in which):
        raise ValueError(f"model.dense.taps={list(which)}; this image tower has maps 0 to {len(every) - 1} to choose from")
    return [every[tap] for tap in which]


def resized(map_BChw: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(map_BChw, size=tuple(size), mode="bilinear", align_corners=False)
