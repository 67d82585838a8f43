"""Objectives: what training minimises. Each is a small frozen class, called with the towers and this rank's part of a global batch.

`prepare` turns the objective's own texts into tokens once; the call returns a scalar whose average over ranks is the loss over
the global batch. Legend: b rows of this rank, D embedding, G words, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.models.losses import info_nce, word_loss
from sightline.models.text import Tokenizer


LossFunction = Callable[[nn.Module, Tensor, Sequence[str]], Tensor]


class Objective(Protocol):
    """The one signature of every objective."""

    def prepare(self, tokenizer: Tokenizer, group: dist.ProcessGroup | None) -> LossFunction:
        """The loss as a function of (towers, the image tower's input [b, ...], captions)."""


@dataclass(frozen=True)
class Contrastive:
    """Symmetric InfoNCE over the global batch, optionally with a word loss beside it.

    Attributes:
        equal_captions_are_no_negatives: rows whose captions are equal do not push each other away.
        word_groups: groups of alternatives ("red", "green", ...); each gives a `word_loss`.
        word_weight: weight of the mean word loss beside InfoNCE.
    """

    equal_captions_are_no_negatives: bool = False
    word_groups: tuple[tuple[str, ...], ...] = ()
    word_weight: float = 0.5

    def prepare(self, tokenizer: Tokenizer, group: dist.ProcessGroup | None) -> LossFunction:
        words = [word for alternatives in self.word_groups for word in alternatives]
        word_tokens_GT = tokenizer(words) if words else None
        sizes = [len(alternatives) for alternatives in self.word_groups]

        def loss(towers: nn.Module, inputs: Tensor, captions: Sequence[str]) -> Tensor:
            tokens_bT = tokenizer(list(captions)).to(inputs.device)
            texts_T = tokens_bT if word_tokens_GT is None else torch.cat([tokens_bT, word_tokens_GT.to(inputs.device)])
            image_bD, text_D, _ = towers(inputs, texts_T)
            # The towers normalise in their own precision; the loss wants unit rows in float32.
            image_bD, text_D = F.normalize(image_bD.float(), dim=-1), F.normalize(text_D.float(), dim=-1)
            text_bD, word_GD = text_D[: len(captions)], text_D[len(captions) :]
            scale = towers.logit_scale.float().exp()
            same_as_b = caption_ids(tokens_bT) if self.equal_captions_are_no_negatives else None
            total = info_nce(image_bD, text_bD, scale, group, same_as_b)
            if words:
                present_bG = words_present(captions, words).to(inputs.device)
                parts = zip(word_GD.split(sizes), present_bG.split(sizes, dim=1), strict=True)
                per_group = [word_loss(image_bD, some_GD, in_bG, scale, group) for some_GD, in_bG in parts]
                total = total + self.word_weight * torch.stack(per_group).mean()
            return total

        return loss


def words_present(captions: Sequence[str], words: Sequence[str]) -> Tensor:
    """bool [b, G]: which of the words stand in which caption, as whole words."""
    sets = [set(re.findall(r"\w+", caption.lower())) for caption in captions]
    return torch.tensor([[word in present for word in words] for present in sets], dtype=torch.bool)


def caption_ids(tokens_bT: Tensor) -> Tensor:
    """An int64 per row that is equal for equal token rows (a polynomial hash, the same on every rank)."""
    weights_T = torch.tensor(
        [pow(6364136223846793005, i + 1, 2**61 - 1) for i in range(tokens_bT.shape[1])], device=tokens_bT.device
    )
    return (tokens_bT * weights_T).sum(1)
