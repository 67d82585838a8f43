"""Real gloo processes for tests of sharding and global losses, without Ray."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _rank(rank: int, world: int, port: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    try:
        torch.save(work(*args), Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def on_ranks(world: int, folder: Path, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `work(*args)` in `world` processes that form one gloo group; their results in rank order."""
    folder.mkdir(parents=True, exist_ok=True)
    mp.spawn(_rank, (world, free_port(), str(folder), work, args), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
