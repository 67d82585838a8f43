"""Contrastive losses over the global batch, with the gradient that one process would compute on all of it.

Every rank holds b = B / W rows, gathers the other ranks' rows *with* gradient, and returns the mean over its own rows. FSDP and
DDP average gradients over ranks, so what is minimised is the mean over all B rows, and each tower's gradient has its full
direction and its full scale (open_clip's default flags give 1/W of it: gathered features without gradient).

Legend: B global batch, b rows of this rank, D embedding, G words of a group, W world size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Rows of all ranks in rank order; backward sums every rank's gradient and keeps this rank's slice."""

    @staticmethod
    def forward(ctx: Any, rows_bD: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.rows = group, rows_bD.shape[0]
        return gather(rows_bD, group)

    @staticmethod
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, None]:
        total_BD = grad_BD.contiguous().clone()  # autograd's own tensor stays as it is
        dist.all_reduce(total_BD, group=ctx.group)
        first = dist.get_rank(ctx.group) * ctx.rows
        return total_BD[first : first + ctx.rows], None


def gather(rows_bX: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All ranks' rows [B, ...] in rank order, without gradient; every rank has equally many."""
    if group is None:
        return rows_bX
    parts = [torch.empty_like(rows_bX) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, rows_bX.contiguous(), group=group)
    return torch.cat(parts)


def gather_with_grad(rows_bD: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All ranks' rows [B, D] in rank order, differentiable; `group=None` is one process alone."""
    return rows_bD if group is None else _Gather.apply(rows_bD, group)


def info_nce(
    image_bD: Tensor,
    text_bD: Tensor,
    scale: Tensor,
    group: dist.ProcessGroup | None = None,
    same_as_b: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3): the mean over this rank's rows.

    Args:
        image_bD, text_bD: unit embeddings of this rank's pairs, float32.
        scale: the inverse temperature exp(logit_scale).
        group: the ranks that share the batch; None: this process alone.
        same_as_b: one integer per row; other rows with the same integer (equal captions) are no negatives.
    """
    image_BD, text_BD = gather_with_grad(image_bD, group), gather_with_grad(text_bD, group)
    rows = image_bD.shape[0]
    first = 0 if group is None else dist.get_rank(group) * rows
    target_b = torch.arange(first, first + rows, device=image_bD.device)
    image_to_text_bB = scale * image_bD @ text_BD.T
    text_to_image_bB = scale * text_bD @ image_BD.T
    if same_as_b is not None:
        not_negative_bB = same_as_b[:, None] == gather(same_as_b, group)[None, :]
        not_negative_bB[torch.arange(rows, device=image_bD.device), target_b] = False
        image_to_text_bB = image_to_text_bB.masked_fill(not_negative_bB, -torch.inf)
        text_to_image_bB = text_to_image_bB.masked_fill(not_negative_bB, -torch.inf)
    return (F.cross_entropy(image_to_text_bB, target_b) + F.cross_entropy(text_to_image_bB, target_b)) / 2


def word_loss(
    image_bD: Tensor,
    word_GD: Tensor,
    present_bG: Tensor,
    scale: Tensor,
    group: dist.ProcessGroup | None = None,
    left_out_bG: Tensor | None = None,
) -> Tensor:
    """Which word of a group of alternatives does the image show? Softmax cross-entropy against the words' own embeddings.

    A caption's words are supervision of their own beside the caption as a whole, as in SuperCLIP (2025). Captions without a word of
    the group take no part; the mean is over the global batch's other rows, so it does not depend on the world size.

    Args:
        image_bD: unit image embeddings of this rank.
        word_GD: unit text embeddings of the group's words.
        present_bG: bool, the words in each row's caption; several share the target equally.
        scale: the inverse temperature.
        left_out_bG: bool, words that are no alternatives for a row; a word that is present must not be left out.
    """
    logits_bG = scale * image_bD @ word_GD.T
    if left_out_bG is not None:
        # Finite, because a left-out word's probability is still multiplied by its target of 0.
        logits_bG = logits_bG.masked_fill(left_out_bG, torch.finfo(logits_bG.dtype).min / 2)
    target_bG = present_bG.float()
    count_b = target_bG.sum(1)
    world = 1 if group is None else dist.get_world_size(group)
    taking_part = (count_b > 0).sum().float()
    if group is not None:
        dist.all_reduce(taking_part, group=group)
    loss_b = -(F.log_softmax(logits_bG, dim=1) * target_bG).sum(1) / count_b.clamp(min=1)
    return loss_b.sum() * world / taking_part.clamp(min=1)
