"""Contrastive losses over the global batch, with the gradient that one process would compute on all of it, in linear memory.

Every rank holds its own b of the B rows (`Share` says which), gathers the other ranks' texts, and walks over its rows in
blocks of c: a block's logits [c, B] exist only while they are used. What stays between forward and backward is the embeddings
and, for InfoNCE, the two vectors of log-sum-exps; backward computes each block again. The result of a rank is W / B times the
sum over its own rows, so the mean over ranks is the mean over the global batch, also where ranks have unequally many rows. FSDP and
DDP average gradients over ranks in the same way, so each tower's gradient has its full direction and its full scale
(open_clip's default flags give 1/W of it: gathered features without gradient). The incoming gradient must be the same on every
rank, as it is in any weighted sum of losses.

Legend: B global batch, b rows of this rank, c rows of a block, D embedding, G words of a group, W world size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# A block holds as many logits as this, if that is at least 128 rows: 16 MiB in float32, which stays close to the caches.
BLOCK_LOGITS = 2**22


@dataclass(frozen=True)
class Share:
    """Which rows of a global batch each rank holds: contiguous ones, in rank order.

    Attributes:
        counts: rows by rank.
        rank: this process.
        group: the ranks; None: this process alone.
    """

    counts: tuple[int, ...]
    rank: int = 0
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, total: int, group: dist.ProcessGroup | None = None) -> Share:
        """The most even split of a global batch: rank r of W holds rows ⌊rB/W⌋ to ⌊(r+1)B/W⌋."""
        rank, world = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        return cls(tuple((r + 1) * total // world - r * total // world for r in range(world)), rank, group)

    @property
    def total(self) -> int:
        return sum(self.counts)

    @property
    def own(self) -> slice:
        """This rank's rows."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    @property
    def weight(self) -> float:
        """W / B: what a sum over own rows is multiplied by so that the mean over ranks is the mean over all rows."""
        return len(self.counts) / self.total

    def parts(self, at_once: int | None) -> list[int]:
        """The bounds, from 0 to b, of parts of own rows; every rank has equally many, because collectives run in each."""
        count = 1 if at_once is None else min(-(-max(self.counts) // at_once), min(self.counts))
        return [part * self.counts[self.rank] // count for part in range(count + 1)]

    def gather(self, rows_bX: Tensor) -> Tensor:
        """All ranks' rows [B, ...] in order, without gradient."""
        assert len(rows_bX) == self.counts[self.rank]
        if self.group is None:
            return rows_bX
        most = max(self.counts)
        padded = rows_bX.new_zeros(most, *rows_bX.shape[1:])
        padded[: len(rows_bX)] = rows_bX
        parts = [torch.empty_like(padded) for _ in self.counts]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:count] for part, count in zip(parts, self.counts, strict=True)])

    def sum_own(self, every_BX: Tensor) -> Tensor:
        """The sum over ranks of a tensor over all rows, this rank's rows [b, ...] of it; the tensor is used up."""
        if self.group is not None:
            dist.all_reduce(every_BX, group=self.group)
        return every_BX[self.own]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Own rows by blocks: (their places among own rows, among all rows)."""
        rows, first = self.counts[self.rank], self.own.start
        size = max(128, BLOCK_LOGITS // self.total)
        for start in range(0, rows, size):
            end = min(start + size, rows)
            yield slice(start, end), slice(first + start, first + end)


def info_nce(image_bD: Tensor, text_bD: Tensor, scale: Tensor, share: Share, same_as_b: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3).

    Args:
        image_bD, text_bD: unit embeddings of this rank's pairs, float32.
        scale: the inverse temperature exp(logit_scale), one element.
        share: who holds which rows.
        same_as_b: one integer per row; other rows with the same integer (equal captions) are no negatives.

    Returns:
        A scalar; its mean over ranks is the loss.
    """
    loss: Tensor = _InfoNCE.apply(image_bD, text_bD, scale, share, same_as_b)
    return loss


def sigmoid_loss(
    image_bD: Tensor, text_bD: Tensor, scale: Tensor, bias: Tensor, share: Share, same_as_b: Tensor | None = None
) -> Tensor:
    """The pairwise sigmoid loss of SigLIP (Zhai et al. 2023, algorithm 1): as `info_nce`, with `bias` added to all logits."""
    loss: Tensor = _Sigmoid.apply(image_bD, text_bD, scale, bias, share, same_as_b)
    return loss


class _InfoNCE(torch.autograd.Function):
    """Of the logits L = s·I·Tᵀ: the mean over rows of (row lse + column lse) / 2 − diagonal."""

    @staticmethod
    def forward(ctx: Any, image_bD: Tensor, text_bD: Tensor, scale: Tensor, share: Share, same_as_b: Tensor | None) -> Tensor:
        text_BD = share.gather(text_bD)
        same_as_B = None if same_as_b is None else share.gather(same_as_b)
        row_b = torch.empty_like(image_bD[:, 0])
        column_B = torch.full_like(text_BD[:, 0], -torch.inf)
        for here, there in share.blocks():
            logits_cB = _logits(image_bD[here], text_BD, scale, there, same_as_B)
            row_b[here] = logits_cB.logsumexp(1)
            column_B = torch.logaddexp(column_B, logits_cB.logsumexp(0))
        column_B = _logsumexp_over_ranks(column_B, share)
        diagonal_b = scale * (image_bD * text_bD).sum(1)
        ctx.share = share
        ctx.save_for_backward(image_bD, text_BD, scale, row_b, column_B, same_as_B)
        return ((row_b + column_B[share.own]) / 2 - diagonal_b).sum() * share.weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image_bD, text_BD, scale, row_b, column_B, same_as_B = ctx.saved_tensors
        share: Share = ctx.share

        def slope(logits_cB: Tensor, here: slice, there: slice) -> Tensor:
            """∂loss/∂logits, without W / B."""
            by_row_cB = (logits_cB - row_b[here, None]).exp_()
            slope_cB = by_row_cB.add_((logits_cB.sub_(column_B)).exp_()).mul_(0.5)
            slope_cB.diagonal(there.start).sub_(1.0)
            return slope_cB

        image_grad_bD, text_grad_bD, scale_grad, _ = _backward(image_bD, text_BD, scale, None, same_as_B, share, slope, gradient)
        return image_grad_bD, text_grad_bD, scale_grad, None, None


class _Sigmoid(torch.autograd.Function):
    """Of the logits L = s·I·Tᵀ + b: the mean over rows of Σ −log σ(±L), + on the diagonal."""

    @staticmethod
    def forward(
        ctx: Any, image_bD: Tensor, text_bD: Tensor, scale: Tensor, bias: Tensor, share: Share, same_as_b: Tensor | None
    ) -> Tensor:
        text_BD = share.gather(text_bD)
        same_as_B = None if same_as_b is None else share.gather(same_as_b)
        # −log σ(−x) = softplus(x), and softplus(−x) = softplus(x) − x for the pairs that match.
        total = -(scale * (image_bD * text_bD).sum() + bias * len(image_bD))
        for here, there in share.blocks():
            total = total + F.softplus(_logits(image_bD[here], text_BD, scale, there, same_as_B, bias)).sum()
        ctx.share = share
        ctx.save_for_backward(image_bD, text_BD, scale, bias, same_as_B)
        return total.sum() * share.weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        image_bD, text_BD, scale, bias, same_as_B = ctx.saved_tensors

        def slope(logits_cB: Tensor, here: slice, there: slice) -> Tensor:
            slope_cB = logits_cB.sigmoid_()
            slope_cB.diagonal(there.start).sub_(1.0)
            return slope_cB

        return (*_backward(image_bD, text_BD, scale, bias, same_as_B, ctx.share, slope, gradient), None, None)


def _logits(
    image_cD: Tensor, text_BD: Tensor, scale: Tensor, there: slice, same_as_B: Tensor | None, bias: Tensor | None = None
) -> Tensor:
    """A block of logits [c, B]; −∞ where a row is no negative of another."""
    logits_cB = image_cD @ text_BD.T
    logits_cB.mul_(scale)
    if bias is not None:
        logits_cB.add_(bias)
    if same_as_B is not None:
        out_cB = same_as_B[there, None] == same_as_B[None, :]
        out_cB.diagonal(there.start).fill_(False)
        logits_cB.masked_fill_(out_cB, -torch.inf)
    return logits_cB


def _backward(
    image_bD: Tensor,
    text_BD: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    same_as_B: Tensor | None,
    share: Share,
    slope: Any,
    gradient: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of own images, own texts, scale and bias, block by block; `slope` turns logits into ∂loss/∂logits."""
    image_grad_bD = torch.empty_like(image_bD)
    text_grad_BD = torch.zeros_like(text_BD)
    bias_grad = torch.zeros_like(scale).sum()
    for here, there in share.blocks():
        slope_cB = slope(_logits(image_bD[here], text_BD, scale, there, same_as_B, bias), here, there)
        torch.mm(slope_cB, text_BD, out=image_grad_bD[here])
        text_grad_BD.addmm_(slope_cB.T, image_bD[here])
        if bias is not None:
            bias_grad = bias_grad + slope_cB.sum()
    text_grad_bD = share.sum_own(text_grad_BD)
    weight = gradient * share.weight
    # Σ slope · (I·Tᵀ) is the images' gradient along the images themselves.
    scale_grad = ((image_grad_bD * image_bD).sum() * weight).reshape(scale.shape)
    image_grad_bD.mul_(weight * scale)
    return (
        image_grad_bD,
        text_grad_bD * (weight * scale),
        scale_grad,
        None if bias is None else (bias_grad * weight).reshape(bias.shape),
    )


def _logsumexp_over_ranks(column_B: Tensor, share: Share) -> Tensor:
    if share.group is None:
        return column_B
    largest_B = column_B.clone()
    dist.all_reduce(largest_B, dist.ReduceOp.MAX, group=share.group)
    total_B = (column_B - largest_B).exp()
    dist.all_reduce(total_B, group=share.group)
    return total_B.log() + largest_B


def word_loss(
    image_bD: Tensor,
    word_GD: Tensor,
    present_bG: Tensor,
    scale: Tensor,
    share: Share,
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
        share: who holds which rows.
        left_out_bG: bool, words that are no alternatives for a row; a word that is present must not be left out.
    """
    logits_bG = scale * image_bD @ word_GD.T
    if left_out_bG is not None:
        # Finite, because a left-out word's probability is still multiplied by its target of 0.
        logits_bG = logits_bG.masked_fill(left_out_bG, torch.finfo(logits_bG.dtype).min / 2)
    target_bG = present_bG.float()
    count_b = target_bG.sum(1)
    taking_part = (count_b > 0).sum().float()
    if share.group is not None:
        dist.all_reduce(taking_part, group=share.group)
    loss_b = -(F.log_softmax(logits_bG, dim=1) * target_bG).sum(1) / count_b.clamp(min=1)
    return loss_b.sum() * len(share.counts) / taking_part.clamp(min=1)
