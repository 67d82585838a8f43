"""FSDP2 over both towers: each block is sharded on its own, then the root takes what is left.

The root is called through `forward` only, so that every gather and every reduction happens; calling a tower by itself on sharded
weights fails loudly ("mixed Tensor and DTensor"). The logit scale stays outside: a bf16 policy would round it (14.2857 → 14.25), so
it is a plain replicated fp32 parameter whose gradient `reduce_replicated` averages.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from sightline.models.towers import Towers

REPLICATED = ("logit_scale", "logit_bias")
BLOCK_LISTS = ("resblocks", "blocks", "stages", "layers")  # open_clip's name, then timm's


def blocks(towers: Towers) -> list[nn.Module]:
    """The repeated blocks of both towers, outermost lists only, in order; a tower without any is one block itself."""
    found: list[nn.Module] = []
    for tower in (towers.visual, towers.text):
        own = _blocks_below(tower)
        found += own or ([tower] if any(True for _ in tower.parameters()) else [])
    return found


def _blocks_below(module: nn.Module) -> list[nn.Module]:
    for name, child in module.named_children():
        if name in BLOCK_LISTS and isinstance(child, (nn.ModuleList, nn.Sequential)):
            return list(child)
    return [block for child in module.children() for block in _blocks_below(child)]


def replicated(towers: Towers) -> list[nn.Parameter]:
    """The parameters that every rank holds whole."""
    return [p for name, p in towers.named_parameters() if name in REPLICATED]


def shard(towers: Towers, mesh: DeviceMesh, *, bf16: bool) -> Towers:
    """Shard the towers in place over the mesh; with bf16 the blocks compute in bf16 and gradients are reduced in fp32."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32) if bf16 else MixedPrecisionPolicy()
    for block in blocks(towers):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(towers, mesh=mesh, mp_policy=policy, ignored_params=set(replicated(towers)))
    return towers


def reduce_replicated(towers: Towers, group: dist.ProcessGroup | None) -> None:
    """Average the replicated parameters' gradients over the ranks, as FSDP does with the sharded ones."""
    for parameter in replicated(towers):
        if parameter.grad is not None and group is not None:
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)


def grad_norm(towers: Towers, group: dist.ProcessGroup | None) -> Tensor:
    """The global L2 norm of all gradients, sharded and replicated, as one process would compute it."""
    device = next(towers.parameters()).device
    sharded, whole = torch.zeros((), device=device), torch.zeros((), device=device)
    for parameter in towers.parameters():
        if isinstance(parameter.grad, DTensor):
            sharded += parameter.grad.to_local().float().square().sum()
        elif parameter.grad is not None:
            whole += parameter.grad.float().square().sum()
    if group is not None:
        dist.all_reduce(sharded, group=group)
    return (sharded + whole).sqrt()


def clip_gradients(towers: Towers, group: dist.ProcessGroup | None, largest: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `largest`; returns the norm before."""
    norm = grad_norm(towers, group)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for parameter in towers.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    return norm
