"""How much arithmetic a model is: the floating-point operations of one pair, counted by torch on tensors without memory.

A multiplication and an addition count two. Matrix products, convolutions and attention count, as everywhere in the literature;
norms and activations are not. A training step costs three forward passes: one forward, and two in backward, of what changes in it:
patches that are dropped (FLIP, Li et al. 2023) cost nothing, a locked trunk only its one pass a run, and a contrastive loss the
logits of each pair with the whole batch. Whatever is computed again (GradCache, recomputed blocks, the loss) counts once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from open_clip.transformer import PatchDropout
from timm.layers import PatchDropout as TimmPatchDropout
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sightline.models.towers import ModelConfig, build

BACKWARD_PASSES = 2
PATCH_DROPOUTS = (PatchDropout, TimmPatchDropout)
# Dense bf16 operations per second of one GPU (V100, T4: fp16), from its maker's data sheet; the first name that fits counts.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
}


def peak(device_name: str) -> float | None:
    """The most operations per second that a GPU of that name does in bf16; None for one that is not in the table."""
    return next((flops for name, flops in PEAKS.items() if name in device_name), None)


@dataclass(frozen=True)
class Cost:
    """Of one image and one text.

    Attributes:
        image, text: operations of a forward pass; a classifier has no text, and a predictor's decoder counts with the image.
        locked: the part of `image` that is passed once a run, not in every step.
        loss: of the logits of a pair.
        parameters: of both towers.
    """

    image: int
    text: int
    locked: int
    loss: int
    parameters: int

    @property
    def training(self) -> int:
        """Operations of a training step for one pair."""
        return (1 + BACKWARD_PASSES) * (self.image - self.locked + self.text + self.loss)


def cost(config: ModelConfig, batch: int = 0) -> Cost:
    """Count a model without computing anything, whatever its size.

    Args:
        batch: of how many pairs a contrastive loss sees the logits; 0 for no such loss.
    """
    with torch.device("meta"):
        towers = build(config).eval()
        image = torch.empty(1, 3, config.preprocess.size, config.preprocess.size)
        text = torch.zeros(1, config.context_length, dtype=torch.long)
    parameters = sum(parameter.numel() for parameter in towers.parameters())
    for module in towers.modules():
        if isinstance(module, PATCH_DROPOUTS) and not config.lock_image:
            module.train()
    if config.is_predictor or config.is_classifier:
        inputs = (image, text) if config.is_predictor else (image,)
        return Cost(count(towers, *inputs), 0, 0, 0, parameters)
    if config.dense:  # its text tower is passed once a run, and so are its taps where they are kept
        kept = count(towers.taps, image) if config.keeps_features else 0
        return Cost(count(towers, image), 0, kept, 0, parameters)
    locked = count(towers.visual.trunk, image) if config.lock_image else 0
    pairs = 2 * batch * config.embed_dim
    return Cost(count(towers.encode_image, image), count(towers.encode_text, text), locked, pairs, parameters)


def count(function: Callable[..., object], *inputs: torch.Tensor) -> int:
    """The operations of a call."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        function(*inputs)
    return int(counter.get_total_flops())
