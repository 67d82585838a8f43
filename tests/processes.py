"""Real gloo processes for tests of sharding and global losses, without Ray.

They are forked from a server that has imported what takes seconds to import, and started nothing: with torch's threads running, a
fork would be no clean start.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

SLOW_IMPORTS = ("sightline.pipelines.train.loop", "sightline.recipes", "torch.distributed.checkpoint.state_dict_saver")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank(
    rank: int, world: int, port: int, folder: str, environment: dict[str, str], work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(environment)  # the server has that of its own start
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        torch.save(work(*args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def whole_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Of every parameter that has one, put together from the ranks' shards where it is sharded."""
    grads = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
    return {name: (grad.full_tensor() if isinstance(grad, DTensor) else grad).clone() for name, grad in grads.items()}


def on_ranks(world: int, folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `work(*args)` in `world` processes that form one gloo group; their results in rank order."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.get_context("forkserver").set_forkserver_preload([*SLOW_IMPORTS])
    mp.start_processes(
        _rank, (world, free_port(), str(folder), dict(os.environ), work, args), nprocs=world, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
