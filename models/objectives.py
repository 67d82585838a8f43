"""Objectives: what training minimises. Each is a small frozen class, called with the towers and this rank's part of a global batch.

`prepare` turns the objective's own texts into tokens once; what it returns runs forward and backward, and its result's average
over ranks is the loss over the global batch. Legend: b rows of this rank, D embedding, G words, L classes, T tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.models import grad_cache
from sightline.models.losses import Share, info_nce, sigmoid_loss, word_loss
from sightline.models.lseg import place_logits
from sightline.models.predictive import trimmed
from sightline.models.sharding import synchronise
from sightline.models.text import Tokenizer
from sightline.models.towers import Towers
from sightline.models.zeroshot import IGNORE

WORD = re.compile(r"\w+")
# Called with the first of some rows' places in the global batch before those go through the towers.
Seed = Callable[[int], object]


@dataclass(frozen=True)
class Targets:
    """What this rank's rows should give.

    Attributes:
        captions: one a row; empty strings where the objective needs none.
        labels_bL: the weight of each class in each row, summing to one; None where the run has no classes.
        masks_bHW: uint8, the class of each pixel, as in `feed/masks.py`; None where the run has no masks.
    """

    captions: Sequence[str]
    labels_bL: Tensor | None = None
    masks_bHW: Tensor | None = None


class Backward(Protocol):
    """A forward and a backward pass over this rank's rows."""

    def __call__(self, towers: Towers, inputs: Tensor, targets: Targets, seed: Seed) -> Tensor:
        """The loss; its gradient is added to the parameters' own.

        Args:
            inputs: the image tower's, [b, ...].
            seed: sets torch's generators, so that dropout draws the same for the same rows when they go through again (and at
                any world size whose parts begin at the same places).
        """


class Objective(Protocol):
    """The one signature of every objective."""

    def prepare(
        self, tokenizer: Tokenizer, share: Share, all_captions: Callable[[], Iterable[str]], at_once: int | None
    ) -> Backward:
        """Everything that is the same for every batch, done once.

        Args:
            share: which rows of a global batch are this rank's.
            all_captions: every caption of the training selection, for objectives that need to know them; of a segmentation, the
                names of its classes.
            at_once: at most so many rows go through the towers together (GradCache); None: all.
        """


@dataclass(frozen=True)
class Contrastive:
    """A contrastive loss over the global batch, optionally with a word loss beside it.

    Attributes:
        loss: `info_nce` (CLIP) or `sigmoid` (SigLIP; the model needs `init_logit_bias`).
        equal_captions_are_no_negatives: rows whose captions are equal do not push each other away.
        word_groups: groups of alternatives ("red", "green", ...); each gives a `word_loss`.
        word_weight: weight of the mean word loss beside InfoNCE.
        unseen_pairs_are_no_negatives: a word that no training caption ever puts next to another word of the row's caption is
            left out of the row's alternatives. That the corpus lacks red threes says nothing about what a red three
            is; without this, "red, so not three" is learnt as a rule.
    """

    kind: Literal["contrastive"] = "contrastive"
    loss: Literal["info_nce", "sigmoid"] = "info_nce"
    equal_captions_are_no_negatives: bool = False
    word_groups: tuple[tuple[str, ...], ...] = ()
    word_weight: float = 0.5
    unseen_pairs_are_no_negatives: bool = False

    def prepare(
        self,
        tokenizer: Tokenizer,
        share: Share,
        all_captions: Callable[[], Iterable[str]],
        at_once: int | None = None,
    ) -> Backward:
        words = [word for alternatives in self.word_groups for word in alternatives]
        sizes = [len(alternatives) for alternatives in self.word_groups]
        word_tokens_GT = tokenizer(words) if words else None
        bounds = share.parts(at_once)
        strangers_GG = None
        if words and self.unseen_pairs_are_no_negatives:
            strangers_GG = strangers(all_captions(), self.word_groups)

        def word_part(image_bD: Tensor, word_GD: Tensor, captions: Sequence[str], scale: Tensor) -> Tensor:
            """The mean word loss over the groups."""
            present_bG = words_present(captions, words)
            left_out_bG = torch.zeros_like(present_bG)
            if strangers_GG is not None:
                left_out_bG = (present_bG.float() @ strangers_GG.float() > 0) & ~present_bG
            device = image_bD.device
            parts = zip(
                word_GD.split(sizes),
                present_bG.to(device).split(sizes, dim=1),
                left_out_bG.to(device).split(sizes, dim=1),
                strict=True,
            )
            per_group = [word_loss(image_bD, w_GD, in_bG, scale, share, out_bG) for w_GD, in_bG, out_bG in parts]
            return torch.stack(per_group).mean()

        def run(towers: Towers, inputs: Tensor, targets: Targets, seed: Seed) -> Tensor:
            captions = targets.captions
            tokens_bT = tokenizer(list(captions)).to(inputs.device)
            same_as_b = caption_ids(tokens_bT) if self.equal_captions_are_no_negatives else None
            # The words follow the captions through the text tower, with the last part.
            texts_T = tokens_bT if word_tokens_GT is None else torch.cat([tokens_bT, word_tokens_GT.to(inputs.device)])

            def part(start: int, end: int) -> tuple[Tensor, Tensor]:
                seed(share.own.start + start)
                image_D, text_D, *_ = towers(inputs[start:end], texts_T[start : None if end == len(inputs) else end])
                # The towers normalise in their own precision; the loss wants unit rows in float32.
                return F.normalize(image_D.float(), dim=-1), F.normalize(text_D.float(), dim=-1)

            def loss(image_bD: Tensor, text_D: Tensor) -> Tensor:
                text_bD, word_GD = text_D[: len(captions)], text_D[len(captions) :]
                scale = towers.logit_scale.float().exp()
                if self.loss == "sigmoid":
                    total = sigmoid_loss(image_bD, text_bD, scale, towers.logit_bias.float(), share, same_as_b)
                else:
                    total = info_nce(image_bD, text_bD, scale, share, same_as_b)
                return total + self.word_weight * word_part(image_bD, word_GD, captions, scale) if words else total

            parts = [partial(part, start, end) for start, end in pairwise(bounds)]
            return grad_cache.backward(parts, loss, partial(synchronise, towers))

        return run


@dataclass(frozen=True)
class Classification:
    """Cross-entropy of a classifier's logits with the rows' labels.

    Attributes:
        label_smoothing: the share of each row's weight that is spread evenly over all classes (Szegedy et al. 2016).
    """

    kind: Literal["classification"] = "classification"
    label_smoothing: float = 0.0

    def prepare(
        self,
        tokenizer: Tokenizer,
        share: Share,
        all_captions: Callable[[], Iterable[str]],
        at_once: int | None = None,
    ) -> Backward:
        def summed(towers: Towers, inputs: Tensor, targets: Targets, rows: slice) -> Tensor:
            assert targets.labels_bL is not None
            logits, labels = towers(inputs[rows]).float(), targets.labels_bL[rows].to(inputs.device)
            return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=self.label_smoothing)

        return row_by_row(share, at_once, summed)


@dataclass(frozen=True)
class Prediction:
    """How surprising the captions are to a model that predicts them (`predictive.py`): nats a token, the mean over the rows."""

    kind: Literal["prediction"] = "prediction"

    def prepare(
        self,
        tokenizer: Tokenizer,
        share: Share,
        all_captions: Callable[[], Iterable[str]],
        at_once: int | None = None,
    ) -> Backward:
        def summed(towers: Towers, inputs: Tensor, targets: Targets, rows: slice) -> Tensor:
            tokens = trimmed(tokenizer(list(targets.captions[rows]))).to(inputs.device)
            nats: Tensor = towers(inputs[rows], tokens)
            return nats.float().sum()

        return row_by_row(share, at_once, summed)


@dataclass(frozen=True)
class Segmentation:
    """Cross-entropy of places with frozen embeddings of label names (`lseg.py`): the mean over a row's pixels, then over rows.

    Attributes:
        held_out: classes that training gets no pixel of: theirs are ignored, never background.
        fold: the same as part of the class list, as in 1/4; resolved into `held_out`.
        loss_stride: the loss looks at every so manieth pixel of the input, each way.
        background_weight: how much a pixel of background counts beside one of a class.
        word_groups: groups of alternatives ("red", "green", ...) that the names are made of; pixels are also asked for the word of
            each group. Words that no name has together with another word of the pixel's name are left out, as in `Contrastive`.
        word_weight: weight of the mean word loss.
    """

    kind: Literal["segmentation"] = "segmentation"
    held_out: tuple[str, ...] = ()
    fold: str = ""
    loss_stride: int = 1
    background_weight: float = 1.0
    word_groups: tuple[tuple[str, ...], ...] = ()
    word_weight: float = 0.5

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(word for alternatives in self.word_groups for word in alternatives)

    def prepare(
        self,
        tokenizer: Tokenizer,
        share: Share,
        all_captions: Callable[[], Iterable[str]],
        at_once: int | None = None,
    ) -> Backward:
        names = list(all_captions())
        present_KG = words_present(names, self.words)
        left_out_KG = torch.zeros_like(present_KG)
        if self.words:
            left_out_KG = (present_KG.float() @ strangers(names, self.word_groups).float() > 0) & ~present_KG
        sizes = [len(alternatives) for alternatives in self.word_groups]

        def word_part(logits_bGhw: Tensor, truth_bhw: Tensor) -> Tensor:
            """The mean over the groups of each row's mean over its pixels of a class, [b]."""
            row_n, y_n, x_n = (truth_bhw < len(names)).nonzero(as_tuple=True)
            class_n = truth_bhw[row_n, y_n, x_n].long()
            count_b = torch.bincount(row_n, minlength=len(truth_bhw)).clamp(min=1)
            total_b = logits_bGhw.new_zeros(len(truth_bhw))
            logits_nG = logits_bGhw[row_n, :, y_n, x_n].masked_fill(left_out_KG.to(class_n.device)[class_n], -torch.inf)
            wanted_nG = present_KG.to(class_n.device)[class_n]
            for logits_ng, wanted_ng in zip(logits_nG.split(sizes, 1), wanted_nG.split(sizes, 1), strict=True):
                lost_n = F.cross_entropy(logits_ng, wanted_ng.int().argmax(1), reduction="none")
                total_b = total_b.index_add(0, row_n, torch.where(wanted_ng.any(1), lost_n, 0.0))
            return total_b / count_b / len(sizes)

        def summed(towers: Towers, inputs: Tensor, targets: Targets, rows: slice) -> Tensor:
            assert targets.masks_bHW is not None
            middle = self.loss_stride // 2
            truth_bhw = targets.masks_bHW[rows, middle :: self.loss_stride, middle :: self.loss_stride].to(inputs.device)
            logits = place_logits(towers(inputs[rows]), towers.label_KD, towers.pixel_scale.float().exp())
            if logits.shape[-2:] != truth_bhw.shape[-2:]:
                logits = F.interpolate(logits, size=truth_bhw.shape[-2:], mode="bilinear", align_corners=False)
            background = slice(len(names) + len(self.words), None)
            classes = torch.cat([logits[:, : len(names)], logits[:, background]], dim=1)
            lost_bhw = F.cross_entropy(classes, truth_bhw.long(), ignore_index=IGNORE, reduction="none")
            weight_bhw = (truth_bhw != IGNORE) * torch.where(truth_bhw == len(names), self.background_weight, 1.0)
            lost_b = (lost_bhw * weight_bhw).sum((1, 2)) / weight_bhw.sum((1, 2)).clamp(min=1e-6)
            if sizes:
                lost_b = lost_b + self.word_weight * word_part(logits[:, len(names) : background.start], truth_bhw)
            return lost_b.sum()

        return row_by_row(share, at_once, summed)


def row_by_row(share: Share, at_once: int | None, summed: Callable[[Towers, Tensor, Targets, slice], Tensor]) -> Backward:
    """The mean over the global batch of a loss whose rows do not know of each other: the gradients of parts add up."""
    bounds = share.parts(at_once)

    def run(towers: Towers, inputs: Tensor, targets: Targets, seed: Seed) -> Tensor:
        total = torch.zeros((), device=inputs.device)
        for start, end in pairwise(bounds):
            synchronise(towers, end == len(inputs))
            seed(share.own.start + start)
            loss = summed(towers, inputs, targets, slice(start, end)) * share.weight
            loss.backward()
            total += loss.detach()
        return total

    return run


def strangers(captions: Iterable[str], word_groups: Sequence[Sequence[str]]) -> Tensor:
    """bool [G, G], symmetric: pairs of words of different groups that stand next to each other in no caption."""
    words = [word for alternatives in word_groups for word in alternatives]
    member = torch.tensor([i for i, alternatives in enumerate(word_groups) for _ in alternatives])
    place = {word: i for i, word in enumerate(words)}
    unseen_GG = member[:, None] != member[None, :]
    for caption in captions:
        found = [place.get(word, -1) for word in WORD.findall(caption.lower())]
        for first, second in pairwise(found):
            if first >= 0 and second >= 0:
                unseen_GG[first, second] = unseen_GG[second, first] = False
    return unseen_GG


def words_present(captions: Sequence[str], words: Sequence[str]) -> Tensor:
    """bool [b, G]: which of the words stand in which caption, as whole words."""
    sets = [set(WORD.findall(caption.lower())) for caption in captions]
    return torch.tensor([[word in present for word in words] for present in sets], dtype=torch.bool)


def caption_ids(tokens_bT: Tensor) -> Tensor:
    """An int64 per row that is equal for equal token rows (a polynomial hash, the same on every rank)."""
    weights_T = torch.tensor(
        [pow(6364136223846793005, i + 1, 2**61 - 1) for i in range(tokens_bT.shape[1])], device=tokens_bT.device
    )
    return (tokens_bT * weights_T).sum(1)
