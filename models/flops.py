"""How much arithmetic a model is: the floating-point operations of one pair, counted by torch on tensors without memory.

A multiplication and an addition count two. Matrix products, convolutions and attention count, as everywhere in the literature;
norms and activations are not. A training step costs three forward passes: one forward, and two in backward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sightline.models.towers import ModelConfig, build

BACKWARD_PASSES = 2
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
        image_trains: whether gradients go through the image tower; a locked one is passed once a run, not in every step.
        parameters: of both towers.
    """

    image: int
    text: int
    image_trains: bool
    parameters: int

    @property
    def training(self) -> int:
        """Operations of a training step for one pair."""
        return (1 + BACKWARD_PASSES) * (self.text + (self.image if self.image_trains else 0))


def cost(config: ModelConfig) -> Cost:
    """Count a model without computing anything, whatever its size."""
    with torch.device("meta"):
        towers = build(config).eval()
        image = torch.empty(1, 3, config.preprocess.size, config.preprocess.size)
        text = torch.zeros(1, config.context_length, dtype=torch.long)
    counts = []
    passes: list[tuple[Callable[..., object], tuple[torch.Tensor, ...]]] = [(towers, (image,))]
    if config.is_predictor:
        passes = [(towers, (image, text))]
    elif not config.is_classifier:
        passes = [(towers.encode_image, (image,)), (towers.encode_text, (text,))]
    for encode, inputs in passes:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            encode(*inputs)
        counts.append(int(counter.get_total_flops()))
    return Cost(counts[0], sum(counts[1:]), not config.lock_image, sum(parameter.numel() for parameter in towers.parameters()))
