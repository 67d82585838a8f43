"""Sharding by FSDP2: each block of both towers on its own, then the root takes what is left. One mechanism, three strategies:

    fsdp    every rank holds 1/W of weights, gradients and optimizer state; least memory, most traffic
    hsdp    sharded over the ranks of a machine, replicated over machines (Zhao et al. 2023): slow links carry gradients only
    ddp     replicated everywhere: FSDP over shards of size one

One worker in fp32 has nothing to share, and FSDP would only copy each weight and each gradient: its parameters stay plain tensors.
Checkpoints and clipping know both kinds. What only sharded weights can get wrong, tests must try with two workers.

The root is called through `forward` only, so that every gather and every reduction happens; calling a tower by itself on sharded
weights fails loudly ("mixed Tensor and DTensor"). The logit scale and bias stay outside: a bf16 policy would round them (14.2857 →
14.25), so they are plain replicated fp32 parameters whose gradients `reduce_replicated` averages.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from sightline.models.towers import Towers

Strategy = Literal["ddp", "fsdp", "hsdp"]
REPLICATED = ("logit_scale", "logit_bias", "pixel_scale")
BLOCK_LISTS = ("resblocks", "blocks", "stages", "layers", "layer1", "layer2", "layer3", "layer4")  # of open_clip, and of timm
STATE_BYTES = 16  # a parameter: weight, gradient and AdamW's two moments in fp32


def choose(parameters: int, worker_bytes: int, world: int, per_machine: int) -> tuple[Strategy, str]:
    """The cheapest strategy whose weights, gradients and optimizer state take at most a quarter of a worker's memory; and why.

    Args:
        parameters: how many there are in both towers.
        worker_bytes: memory of one worker's device.
        world, per_machine: workers in all, and on one machine.
    """
    state, budget = STATE_BYTES * parameters, worker_bytes / 4
    need = f"{gigabytes(state)} of weights, gradients and optimizer state"
    if state <= budget:
        return "ddp", f"{need} fit whole in a quarter of {gigabytes(worker_bytes)}"
    if per_machine < world and world % per_machine == 0 and state / per_machine <= budget:
        return "hsdp", f"{need} fit a quarter of {gigabytes(worker_bytes)} when the {per_machine} workers of a machine share them"
    return "fsdp", f"{need} exceed a quarter of {gigabytes(worker_bytes)}, so all {world} workers share them"


def check_fits(parameters: int, worker_bytes: int, shards: int) -> None:
    """Refuse a model whose weights, gradients and optimizer state alone exceed a worker's memory.

    Raises:
        ValueError: with how many workers it would take.
    """
    state = STATE_BYTES * parameters
    if state / shards > worker_bytes:
        raise ValueError(
            f"{gigabytes(state)} of weights, gradients and optimizer state do not fit {shards} "
            f"worker{'s' * (shards > 1)} of {gigabytes(worker_bytes)}; give at least {-(-state // worker_bytes)} such workers "
            "and --strategy fsdp, or a smaller model"
        )


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.3g} GB"


def make_mesh(strategy: Strategy, device_type: str, world: int, per_machine: int) -> DeviceMesh:
    """The ranks as [replicas, shards], or where nothing is replicated as shards alone.

    Raises:
        ValueError: hsdp on machines with unequally many workers.
    """
    shards = {"ddp": 1, "fsdp": world, "hsdp": per_machine}[strategy]
    if world % shards:
        raise ValueError(f"hsdp needs as many workers on each machine, and {world} are no multiple of {shards}; take fsdp")
    if strategy == "fsdp":
        return init_device_mesh(device_type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device_type, (world // shards, shards), mesh_dim_names=("replicate", "shard"))


def blocks(towers: Towers) -> list[nn.Module]:
    """The repeated blocks of each tower, outermost lists only, in order; a tower without any is one block itself."""
    found: list[nn.Module] = []
    for tower in towers.children():
        names = block_names(tower)
        found += [tower.get_submodule(name) for name in names] or ([tower] if any(True for _ in tower.parameters()) else [])
    return found


def block_names(module: nn.Module, prefix: str = "") -> list[str]:
    """The repeated blocks below a module by their names: those of the first list on each way down, in order (a hybrid has two)."""
    found: list[str] = []
    for name, child in module.named_children():
        if name in BLOCK_LISTS and isinstance(child, (nn.ModuleList, nn.Sequential)):
            found += [f"{prefix}{name}.{own}" for own, _ in child.named_children()]
        else:
            found += block_names(child, f"{prefix}{name}.")
    return found


def replicated(towers: Towers) -> list[nn.Parameter]:
    """The parameters that every rank holds whole."""
    return [p for name, p in towers.named_parameters() if name in REPLICATED]


def shard(towers: Towers, mesh: DeviceMesh, *, bf16: bool, recompute: bool = False, compiled: bool = False) -> Towers:
    """Shard the towers in place over the mesh.

    Args:
        bf16: the towers compute in bf16; what they return is fp32, and gradients are reduced and kept in fp32.
        recompute: blocks keep no activations and compute them again in the backward pass, with the same random numbers.
        compiled: each block goes through torch.compile.
    """
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    alone = mesh.size() == 1 and not bf16
    for block in blocks(towers):
        if compiled:
            block.forward = torch.compile(block.forward)
        if recompute:  # outside: torch.compile would leave a block that checkpoints itself alone
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        if not alone:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    if alone:
        return towers
    # The last outputs alone are float32 again: those of blocks would not go into the bf16 norms between them.
    whole = replace(policy, output_dtype=torch.float32) if bf16 else policy
    fully_shard(towers, mesh=mesh, mp_policy=whole, ignored_params=set(replicated(towers)))
    return towers


def synchronise(towers: nn.Module, last: bool) -> None:
    """Whether the next backward reduces gradients over the ranks: of several that add up, only the last one does."""
    if isinstance(towers, FSDPModule):
        towers.set_requires_gradient_sync(last)
        towers.set_is_last_backward(last)


def reduce_replicated(towers: Towers, group: dist.ProcessGroup | None) -> None:
    """Average the replicated parameters' gradients over the ranks, as FSDP does with the sharded ones."""
    for parameter in replicated(towers):
        if parameter.grad is not None and group is not None:
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= dist.get_world_size(group)


def grad_norm(towers: Towers) -> Tensor:
    """The global L2 norm of all gradients, sharded and replicated, as one process would compute it; the same on all ranks."""
    gradients = [parameter.grad for parameter in towers.parameters() if parameter.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norms = [nn.utils.get_total_norm(whole)] if whole else []
    if sharded:
        norms.append(cast(DTensor, nn.utils.get_total_norm(sharded)).full_tensor())
    return torch.linalg.vector_norm(torch.stack(norms))


def clip_gradients(towers: Towers, largest: float) -> Tensor:
    """Scale all gradients so that their global norm is at most `largest`; returns the norm before."""
    norm = grad_norm(towers)
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for parameter in towers.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(factor)
    return norm
