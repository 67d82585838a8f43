"""Open-vocabulary segmentation: labels typed by a person become a label map of the image's own size.

    places    what the model says of each place of one or many windows: a dense readout of its tower, or its learned head
    scores    of each label [L, h, w], the mean over windows and sizes; of several names of one label ("car|truck") the best
    image     scores upsampled to the image, refined along its edges [L, H, W]
    decision  a pixel belongs to its best label, or to none (`SegmentOptions.background`)

Scores of a readout are features · (label − mean of the contrast prompts): what all labels share says nothing. Those of a learned
head are its logits.

Legend: B windows, L labels, N names, D embedding, H W the image's pixels, S the tower's input size, h w its grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.clip import Clip
from sightline.models.dense import dense_features
from sightline.models.lseg import Lseg, place_logits
from sightline.models.preprocess import resample, to_CHW
from sightline.models.refine import refine
from sightline.models.zeroshot import BACKGROUND

# What pictures are full of besides the labels; contrast for models that do not know their classes.
COMMON_STUFF = ("sky", "ground", "wall", "floor", "grass", "water", "building", "tree", "road", "a blurry background")
SYNONYMS = "|"
WINDOWS_AT_ONCE = 16
REFINED = 16  # labels, those with the highest peaks; refinement costs each 24 copies of its scores


@dataclass(frozen=True)
class SegmentOptions:
    """How scores become masks.

    Attributes:
        readout: how a transformer without a head is read, see `dense.READOUTS`; "" is the default.
        sizes: the shorter sides in pixels at which the image is read by windows of the tower's size, at least that; none: the whole
            image squeezed into one window.
        stride: how far windows are apart, as a share of their side.
        templates: prompts with {} for the label; none: the model's own.
        background: what belongs to no label: pixels below the `threshold`, pixels that a word of COMMON_STUFF fits better, what a
            learned head says is background, or nothing.
        threshold: share of the largest score (of a head: the probability) that a pixel needs.
        present: the labels are taken to be in the image: each counts relative to its own largest score, else to the largest of all.
        cosine: features count by their direction alone; otherwise also by their size.
        contrast: prompts whose mean is taken out of every label.
        refine_steps: iterations of the refinement by the image; 0 leaves the upsampled scores as they are.
    """

    readout: str = ""
    sizes: tuple[int, ...] = ()
    stride: float = 0.5
    templates: tuple[str, ...] = ()
    background: Literal["threshold", "words", "learned", "none"] = "threshold"
    threshold: float = 0.5
    present: bool = True
    cosine: bool = False
    contrast: tuple[str, ...] = COMMON_STUFF
    refine_steps: int = 10

    @classmethod
    def for_model(cls, model: Clip) -> SegmentOptions:
        """A learned head knows its background and edges; for a readout, the model's own classes are the contrast where known."""
        if isinstance(model.towers, Lseg):
            return cls(background="learned" if model.towers.head.background else "none", present=False, refine_steps=0)
        classes = tuple(name for name in model.classes if name != BACKGROUND)
        return cls(contrast=classes) if len(classes) > 1 else cls()


@dataclass(frozen=True)
class Segmentation:
    """label_map_HW: uint8, 0 is background and i + 1 is labels[i]; scores_LHW: float32, at most 1, largest where a label is."""

    label_map_HW: NDArray[np.uint8]
    scores_LHW: NDArray[np.float32]


@torch.inference_mode()
def segment(model: Clip, rgb_HWC: NDArray[np.uint8], labels: Sequence[str], options: SegmentOptions | None = None) -> Segmentation:
    """Segment an RGB image by labels, at its own size; a label may be several names with | between them.

    Raises:
        ValueError: no labels, more than 255, options that the model cannot follow, or a tower that cannot be read densely.
    """
    options = options or SegmentOptions.for_model(model)
    if len(labels) > 255:
        raise ValueError(f"{len(labels)} labels were given; a label map holds at most 255")
    names = [[name.strip() for name in label.split(SYNONYMS)] for label in labels]
    image_CHW = to_CHW(rgb_HWC)
    scores_XHW = to_image(everywhere(image_CHW, model, options, scorer(model, names, options)), image_CHW, model, options)
    return decide(scores_XHW, len(labels), options, logits=isinstance(model.towers, Lseg))


def scorer(model: Clip, names: Sequence[Sequence[str]], options: SegmentOptions) -> Callable[[Tensor], Tensor]:
    """What gives the scores [B, L, h, w] of uint8 windows [B, 3, S, S], and with some kinds of background one row more for it.

    Raises:
        ValueError: the model has no head for the options, or has one and they are about a readout.
    """
    templates = options.templates or None
    flat = [name for some in names for name in some]
    owner_N = torch.tensor([i for i, some in enumerate(names) for _ in some], device=model.device)
    extra = [word for word in COMMON_STUFF if word not in flat] if options.background == "words" else []
    owner_N = torch.cat([owner_N, owner_N.new_full((len(extra),), len(names))])
    weights_ND = model.classifier([*flat, *extra], templates)

    def best(scores_BNhw: Tensor) -> Tensor:
        """The best name of each label."""
        found = scores_BNhw.new_full((len(scores_BNhw), len(names) + bool(extra), *scores_BNhw.shape[2:]), -torch.inf)
        index = owner_N.view(1, -1, 1, 1).expand_as(scores_BNhw)
        return found.scatter_reduce(1, index, scores_BNhw, "amax")

    towers = model.towers
    if isinstance(towers, Lseg):
        learned = options.background == "learned"
        if options.readout or (learned and not towers.head.background):
            what = f"readout {options.readout!r}" if options.readout else "background 'learned'"
            raise ValueError(f"{model.name} segments by a head that has no {what}; leave it out")

        def of_head(windows_BCSS: Tensor) -> Tensor:
            logits = place_logits(towers(model.preprocess.normalise(windows_BCSS)), weights_ND, towers.pixel_scale.exp())
            known, background = logits[:, : len(weights_ND)], logits[:, len(weights_ND) :]
            return torch.cat([best(known), background], dim=1) if learned else best(known)

        return of_head
    if options.background == "learned":
        raise ValueError(f"{model.name} has no head that has learned the background; give background threshold, words or none")
    shared_D = model.classifier(list(dict.fromkeys([*options.contrast, *flat])), templates).mean(0)

    def of_readout(windows_BCSS: Tensor) -> Tensor:
        features_BDhw = dense_features(towers, model.preprocess.normalise(windows_BCSS), options.readout).float()
        if options.cosine:
            features_BDhw = F.normalize(features_BDhw, dim=1)
        return best(torch.einsum("nd,bdhw->bnhw", weights_ND - shared_D, features_BDhw))

    return of_readout


def everywhere(image_CHW: Tensor, model: Clip, options: SegmentOptions, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores [L, h, w] of the whole image: of one window, or the mean over the windows of each size.

    Raises:
        ValueError: a size is below the tower's, or the stride leaves gaps or stands still.
    """
    side = model.preprocess.size
    if not options.sizes:
        return score(whole(image_CHW, model).to(model.device))[0].cpu()
    if not 0 < options.stride <= 1:
        raise ValueError(f"stride is {options.stride}; give a share of the window's side, above 0 and at most 1")
    found = []
    for size in options.sizes:
        if size < side:
            raise ValueError(f"size {size} is below the windows of {side} pixels; give at least that")
        short = min(image_CHW.shape[-2:])
        height, width = (max(side, round(length * size / short)) for length in image_CHW.shape[-2:])
        sized_CHW = resample(image_CHW, height, width)
        corners = [(top, left) for top in starts(height, side, options.stride) for left in starts(width, side, options.stride)]
        total, count_HW = torch.zeros(()), torch.zeros(height, width)
        for first in range(0, len(corners), WINDOWS_AT_ONCE):
            some = corners[first : first + WINDOWS_AT_ONCE]
            windows = torch.stack([sized_CHW[:, top : top + side, left : left + side] for top, left in some])
            scores = upsampled(score(windows.to(model.device)).cpu(), (side, side))
            if not total.ndim:
                total = torch.zeros(scores.shape[1], height, width)
            for (top, left), one_LSS in zip(some, scores, strict=True):
                total[:, top : top + side, left : left + side] += one_LSS
                count_HW[top : top + side, left : left + side] += 1
        found.append(total / count_HW)
    largest = max((tuple(one.shape[-2:]) for one in found), key=lambda size: size[0])
    return torch.stack([upsampled(one[None], largest)[0] for one in found]).mean(0)


def starts(length: int, side: int, stride: float) -> list[int]:
    """Where windows begin along a length, so that they cover it evenly, at most `stride` of their side apart."""
    steps = -(-(length - side) // max(1, round(side * stride)))
    return [round(step * (length - side) / max(1, steps)) for step in range(steps + 1)]


def whole(image_CHW: Tensor, model: Clip) -> Tensor:
    """The whole image as one input [1, 3, S, S]: squashed rather than cropped, so that every pixel has an answer."""
    return resample(image_CHW, model.preprocess.size, model.preprocess.size)[None]


def to_image(scores_Lhw: Tensor, image_CHW: Tensor, model: Clip, options: SegmentOptions) -> Tensor:
    """Scores at the image's size: bilinear, refined where the longer side has at most as many pixels as the tower saw.

    Edges finer than the tower's input say nothing about its scores.
    """
    size = (image_CHW.shape[-2], image_CHW.shape[-1])
    if options.refine_steps:
        most = max(model.preprocess.size, *options.sizes, 0)
        height, width = (max(1, round(side * min(1, most / max(size)))) for side in size)
        rgb_CHW = resample(image_CHW, height, width).float() / 255
        scores_Lhw = upsampled(scores_Lhw[None], (height, width))[0].clone()
        leading = scores_Lhw.amax((1, 2)).topk(min(REFINED, len(scores_Lhw))).indices
        scores_Lhw[leading] = refine(scores_Lhw[leading], rgb_CHW, steps=options.refine_steps)
    return upsampled(scores_Lhw[None], size)[0]


def upsampled(scores_BLhw: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(scores_BLhw.shape[-2:]) == tuple(size):
        return scores_BLhw
    return F.interpolate(scores_BLhw, size=tuple(size), mode="bilinear", align_corners=False)


def decide(scores_XHW: Tensor, labels: int, options: SegmentOptions, *, logits: bool) -> Segmentation:
    """The label of each pixel; a row beyond the labels' is the background's. Logits become probabilities, and those have no scale
    that would have to be found in the image."""
    rows_XHW = scores_XHW.softmax(0) if logits else scores_XHW
    shares_LHW = rows_XHW[:labels]
    if not logits:
        largest = shares_LHW.amax((1, 2), keepdim=True) if options.present else shares_LHW.amax()
        shares_LHW = shares_LHW / largest.clamp(min=1e-6)
    if len(rows_XHW) > labels:
        number_HW = rows_XHW.argmax(0)
        label_map_HW = torch.where(number_HW < labels, number_HW + 1, 0)
    else:
        best_HW = shares_LHW.max(0)
        least = options.threshold if options.background == "threshold" else -torch.inf
        label_map_HW = torch.where(best_HW.values > least, best_HW.indices + 1, 0)
    return Segmentation(label_map_HW.to(torch.uint8).numpy(), shares_LHW.numpy())
