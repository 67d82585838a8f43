"""Masks follow edges of the image: pixel-adaptive refinement without weights (after PAMR, Araslanov and Roth 2020).

Each step replaces a pixel's scores by an average of its neighbours' at several distances, weighted by how alike their colours are.
Legend: L labels, H W pixels, O neighbour offsets.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


def refine(
    scores_LHW: Tensor,
    rgb_CHW: Tensor,
    steps: int = 10,
    dilations: tuple[int, ...] = (1, 2, 4),
    colour_sigma: float = 0.12,
) -> Tensor:
    """Scores [L, H, W] smoothed within regions of like colour.

    Args:
        rgb_CHW: the image as floats from 0 to 1, of the scores' size.
        colour_sigma: the colour distance (root of the summed squares) at which a neighbour counts e^-½.
    """
    offsets = [(dy * dilation, dx * dilation) for dilation in dilations for dy, dx in AROUND]
    pad = max(dilations)
    colours_OCHW = _neighbours(rgb_CHW, offsets, pad)
    distance_OHW = (colours_OCHW - rgb_CHW).square().sum(1)
    weights_OHW = torch.softmax(-distance_OHW / (2 * colour_sigma**2), dim=0)
    for _ in range(steps):
        scores_LHW = torch.einsum("ohw,olhw->lhw", weights_OHW, _neighbours(scores_LHW, offsets, pad))
    return scores_LHW


def _neighbours(image_CHW: Tensor, offsets: list[tuple[int, int]], pad: int) -> Tensor:
    """The image as seen from each offset [O, C, H, W]; the border repeats."""
    height, width = image_CHW.shape[-2:]
    padded = F.pad(image_CHW[None], (pad,) * 4, mode="replicate")[0]
    return torch.stack([padded[:, pad + dy : pad + dy + height, pad + dx : pad + dx + width] for dy, dx in offsets])
