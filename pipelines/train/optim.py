"""How weights are updated: AdamW's groups, the learning rate as a function of the step, and the average of the weights.

Nothing here has a state that a step number and the checkpoint do not give: the rate is computed, not stepped.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import cos, pi, sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sightline.models.sharding import REPLICATED, block_names
from sightline.models.towers import Towers

Schedule = Literal["cosine", "wsd", "constant", "inverse_sqrt"]
# What stands above the blocks of a tower although it is registered on the tower itself, before them.
ABOVE = ("proj", "text_projection")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW (Loshchilov and Hutter 2019); gains, biases and the scale do not decay, all else does, as in open_clip's trainer.

    Attributes:
        lr: after the linear warm-up of `warmup_steps`.
        schedule: what follows. `cosine`: half a cosine to zero. `wsd`: stays, then falls to zero over the last `cooldown` of all
            steps, by 1 − √progress (Hägele et al. 2024). `constant`: stays. `inverse_sqrt`: falls as √(warm-up / step)
            (Vaswani et al. 2017), so that the end need not be known.
        cooldown: the last part of the steps, for `wsd`.
        layer_decay: each layer's rate is so many times the one above it (Clark et al. 2020; BEiT); 1 for none.
        ema: decay of the weights' moving average, which the artifact then holds; 0 for none.
        clip_norm: the largest norm of all gradients together; None for any.
    """

    lr: float = 1e-3
    warmup_steps: int = 30
    schedule: Schedule = "cosine"
    cooldown: float = 0.2
    weight_decay: float = 0.1
    layer_decay: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    clip_norm: float | None = 1.0
    ema: float = 0.0


def learning_rate(options: OptimConfig, step: int, steps: int) -> float:
    """The rate of step 0, 1, ..., steps - 1."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    after, left = step - options.warmup_steps, max(1, steps - options.warmup_steps)
    match options.schedule:
        case "cosine":
            return options.lr * (1 + cos(pi * after / left)) / 2
        case "wsd":
            falling = max(1, round(options.cooldown * steps))
            progress = max(0, step - (steps - falling)) / falling
            return options.lr * (1 - sqrt(progress))
        case "constant":
            return options.lr
        case "inverse_sqrt":
            warm = max(1, options.warmup_steps)
            return options.lr * sqrt(warm / (warm + after))


def adamw(towers: Towers, options: OptimConfig) -> torch.optim.AdamW:
    """AdamW in groups of equal decay and equal share of the rate; the replicated scale stands apart (it is no DTensor)."""
    layers = depths(towers) if options.layer_decay != 1.0 else defaultdict(int)
    groups: dict[tuple[bool, bool, int], dict[str, Any]] = {}
    for name, parameter in towers.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim >= 2 and "bias" not in name  # Swin's tables of biases have two axes
            key = (not decays, name in REPLICATED, layers[name])
            share = options.layer_decay ** layers[name]
            decay = options.weight_decay if decays else 0.0
            group = groups.setdefault(key, {"params": [], "weight_decay": decay, "lr_share": share, "lr": options.lr * share})
            group["params"].append(parameter)
    return torch.optim.AdamW(
        [groups[key] for key in sorted(groups)],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_share"]


def depths(towers: nn.Module) -> dict[str, int]:
    """Parameter → how many layers of its tower stand above it: 0 for heads, then the blocks from the last to the first, then
    what comes before them (embeddings and stem). Towers without blocks, and the scale, are all 0."""
    found = dict.fromkeys((name for name, _ in towers.named_parameters()), 0)
    for tower, child in towers.named_children():
        names = [f"{tower}.{name}." for name in block_names(child)]
        below = bool(names)
        for name, _ in child.named_parameters(prefix=tower):
            place = next((i for i, block in enumerate(names) if name.startswith(block)), None)
            if place is not None:
                below = False
                found[name] = len(names) - place
            elif (below or not names) and name.rpartition(".")[2] not in ABOVE:
                found[name] = len(names) + 1 if names else 0
    return found


class Ema:
    """A moving average of the weights, of each rank's own shards: v ← d v + (1 − d) w after every step (Polyak and Juditsky 1992).

    The first steps average less, d = min(decay, (1 + step) / (10 + step)), so that the random start does not stay in it.
    """

    def __init__(self, towers: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in towers.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, towers: nn.Module, step: int) -> None:
        """`step` is the number of steps done before this one."""
        decay = min(self.decay, (1 + step) / (10 + step))
        live = dict(towers.named_parameters())
        torch._foreach_lerp_(
            [local(average) for average in self.weights.values()], [local(live[name]) for name in self.weights], 1 - decay
        )

    @torch.no_grad()
    def store(self, towers: nn.Module) -> None:
        """Put the average into the towers, in place of the weights."""
        live = dict(towers.named_parameters())
        for name, average in self.weights.items():
            local(live[name]).copy_(local(average))


def local(tensor: Tensor) -> Tensor:
    """This rank's shard."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
