"""Checkpoints: a fresh folder each, torch's DCP inside, and a manifest that is written last.

`step-00000200-<attempt>/` holds DCP's files and then `complete.json` (step, loss, the ledger's link, run id, sizes). A folder
without it never counts: DCP's own marker survives in a folder that is written twice, so no folder is. What must be restored is the
weights, the optimizer's state and the step; the data position and the schedule are functions of the step.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from sightline.models.towers import Towers

MARKER = "complete.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the number of steps done, the loss of the last of them, and the ledger's link."""

    path: Path
    step: int
    loss: float
    read: str


def newest(folder: Path, run_id: str) -> Checkpoint | None:
    """The complete checkpoint of that run with the highest step; None where there is none."""
    found = []
    for marker in folder.glob(f"step-*/{MARKER}"):
        record = json.loads(marker.read_text())
        whole = all(_has_size(marker.parent / name, size) for name, size in record["files"].items())
        if record["run_id"] == run_id and whole:
            found.append(Checkpoint(marker.parent, record["step"], record["loss"], record["read"]))
    return max(found, key=lambda checkpoint: checkpoint.step, default=None)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def save(
    folder: Path,
    step: int,
    loss: float,
    read: str,
    run_id: str,
    towers: Towers,
    optimizer: torch.optim.Optimizer,
    keep: int = 2,
) -> None:
    """Save on all ranks; rank 0 marks it complete and removes all but the newest `keep`."""
    # The folder's name must be new and the same on every rank.
    name = [f"step-{step:08d}-{os.urandom(3).hex()}"]
    dist.broadcast_object_list(name, src=0)
    path = folder / name[0]
    state_dict_saver.save(state(towers, optimizer), checkpoint_id=str(path))
    if dist.get_rank() == 0:
        files = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
        write_atomically(path / MARKER, json.dumps({"step": step, "loss": loss, "read": read, "run_id": run_id, "files": files}))
        prune(folder, path, keep)


def load(checkpoint: Checkpoint, towers: Towers, optimizer: torch.optim.Optimizer) -> None:
    """Restore in place, whatever the number of workers that saved it."""
    target = state(towers, optimizer)
    state_dict_loader.load(target, checkpoint_id=str(checkpoint.path))
    set_state_dict(towers, optimizer, model_state_dict=target["model"], optim_state_dict=target["optimizer"])


def state(towers: Towers, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(towers, optimizer)
    return {"model": model_state, "optimizer": optimizer_state}


def prune(folder: Path, newest_path: Path, keep: int) -> None:
    """Remove checkpoints that newer complete ones supersede, and what interrupted saves left."""
    complete = sorted(marker.parent for marker in folder.glob(f"step-*/{MARKER}"))
    for path in folder.glob("step-*"):
        if path not in complete[-keep:] and path != newest_path:
            (path / MARKER).unlink(missing_ok=True)  # first, so that a half-removed one does not count
            shutil.rmtree(path)


def write_atomically(path: Path, text: str) -> None:
    """The whole file or none of it, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
