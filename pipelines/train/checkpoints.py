"""Checkpoints: a fresh folder each, torch's DCP inside, and a manifest that is written last; on a disk or in an object store.

`step-00000200-<attempt>/` holds DCP's files and then `complete.json` (step, loss, the ledger's link, run id, sizes). A folder
without it never counts: DCP's own marker survives in a folder that is written twice, so no folder is. What must be restored is the
weights, the optimizer's state and the step; the data position and the schedule are functions of the step.

A save runs beside the training: (1) `begin` starts copying the tensors in a thread and returns; (2) the next step's forward and
backward passes go on, for they only read them; (3) `copied` waits until the copy is whole, right before the weights change;
(4) a thread writes the copy; (5) when every rank has written, rank 0 writes the manifest and removes older ones. A kill
at any moment leaves the checkpoint before. The thread has a process group of its own: on the training's it would deadlock.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import AsyncSaveResponse, async_save

from sightline.models.towers import Towers
from sightline.pipelines.corpus.object_store import needs_package
from sightline.pipelines.train.optim import Ema

TIMEOUT = timedelta(seconds=300)  # when a rank hangs
MARKER = "complete.json"
SCORES = "scores.json"  # beside it, once the checkpoint was evaluated: metric → value


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder (path or URL), the number of steps done, the loss of the last, and the ledger's link."""

    path: str
    step: int
    loss: float
    read: str


@dataclass
class State:
    """What a checkpoint holds: each rank's shards of it."""

    towers: Towers
    optimizer: torch.optim.Optimizer
    ema: Ema | None = None

    def tensors(self) -> dict[str, Any]:
        """References, not copies."""
        model, optimizer = get_state_dict(self.towers, self.optimizer)
        return {"model": model, "optimizer": optimizer} | ({"ema": self.ema.weights} if self.ema else {})


class Place:
    """Where a run's checkpoints lie: a folder that all workers see, or whatever is below an fsspec URL (`s3://bucket/runs/a`)."""

    def __init__(self, location: str | Path) -> None:
        self.root = str(location).rstrip("/")
        try:
            self._files, base = fsspec.core.url_to_fs(self.root)
        except ImportError as error:
            raise needs_package(self.root, error) from None
        self._base = base.rstrip("/")
        self._on_disk = "://" not in self.root

    def folders(self) -> list[str]:
        """The checkpoints' folders, by name, whole or not."""
        self._files.invalidate_cache()  # other processes write here too
        if not self._files.exists(self._base):
            return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in self._files.ls(self._base, detail=False))
        return sorted(name for name in names if name.startswith("step-"))

    def sizes(self, folder: str) -> dict[str, int]:
        """The files right in a folder; empty where there is none."""
        self._files.invalidate_cache()
        path = f"{self._base}/{folder}"
        found = self._files.ls(path, detail=True) if self._files.exists(path) else []
        return {entry["name"].rpartition("/")[2]: int(entry["size"]) for entry in found if entry["type"] == "file"}

    def read(self, name: str) -> Any:
        return json.loads(self._files.cat_file(f"{self._base}/{name}"))

    def publish(self, name: str, record: dict[str, Any]) -> None:
        """The whole file or none of it, also after a crash; object stores do that by themselves."""
        if self._on_disk:
            write_atomically(Path(self._base) / name, json.dumps(record))
        else:
            self._files.pipe_file(f"{self._base}/{name}", json.dumps(record).encode())

    def remove(self, folder: str) -> None:
        self._files.rm(f"{self._base}/{folder}", recursive=True)

    def writer(self, folder: str) -> FileSystemWriter:
        path = f"{self.root}/{folder}"
        return FileSystemWriter(path) if self._on_disk else FsspecWriter(path)

    def reader(self, folder: str) -> FileSystemReader:
        path = f"{self.root}/{folder}"
        return FileSystemReader(path) if self._on_disk else FsspecReader(path)


def complete(location: str | Path, run_id: str) -> list[Checkpoint]:
    """The complete checkpoints of that run, oldest first."""
    place, found = Place(location), []
    for folder in place.folders():
        sizes = place.sizes(folder)
        if MARKER in sizes:
            try:
                record = place.read(f"{folder}/{MARKER}")
            except FileNotFoundError:
                continue  # a newer one has superseded it meanwhile
            if record["run_id"] == run_id and all(sizes.get(name) == size for name, size in record["files"].items()):
                found.append(Checkpoint(f"{place.root}/{folder}", record["step"], record["loss"], record["read"]))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def newest(location: str | Path, run_id: str) -> Checkpoint | None:
    """The complete checkpoint of that run with the highest step; None where there is none."""
    return next(reversed(complete(location, run_id)), None)


def load(checkpoint: Checkpoint, state: State) -> None:
    """Restore in place, whatever the number of workers that saved it.

    Raises:
        ValueError: it is one of another model.
    """
    root, _, folder = checkpoint.path.rpartition("/")
    target = state.tensors()
    try:
        state_dict_loader.load(target, storage_reader=Place(root).reader(folder))
    except CheckpointException as error:
        raise ValueError(
            f"the checkpoint {checkpoint.path} does not fit this model ({_cause(error)}); remove it, or begin another run"
        ) from error
    fused = [group["fused"] for group in state.optimizer.param_groups]  # how to compute is this run's matter, not the checkpoint's
    set_state_dict(state.towers, state.optimizer, model_state_dict=target["model"], optim_state_dict=target["optimizer"])
    for group, how in zip(state.optimizer.param_groups, fused, strict=True):
        group["fused"] = how


def _cause(error: BaseException) -> BaseException:
    """What failed on the first rank that failed."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


class Checkpoints:
    """A run's checkpoints, and the one save that may be under way. Every method is called by all ranks."""

    def __init__(self, location: str | Path, run_id: str, *, keep: int = 2, best_by: str = "", scored: bool = False) -> None:
        """`keep` of the newest stay, and the one whose `scores.json` has most of `best_by`; where there will be scores (`scored`),
        those without them too.
        """
        self._place, self._run_id, self._keep, self._best_by, self._scored = Place(location), run_id, keep, best_by, scored
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._stager = DefaultStager(
            StagingOptions(use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=True, use_non_blocking_copy=gpu)
        )
        self._saving: AsyncSaveResponse | None = None
        self._marker: Future[None] | None = None
        self._step = 0

    def newest(self) -> Checkpoint | None:
        """One answer for all ranks, also where a network file system lags."""
        found = [newest(self._place.root, self._run_id) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def begin(self, step: int, loss: float, read: str, state: State) -> None:
        """Start a save; the one before it is finished first."""
        self.finish()
        # The folder's name must be new and the same on every rank.
        name = [f"step-{step:08d}-{os.urandom(3).hex()}"]
        dist.broadcast_object_list(name, src=0)
        folder = name[0]
        response = async_save(
            state.tensors(),
            storage_writer=self._place.writer(folder),
            process_group=self._group,
            async_stager=self._stager,
        )
        assert isinstance(response, AsyncSaveResponse)
        self._saving, self._step = response, step
        record = {"step": step, "loss": loss, "read": read, "run_id": self._run_id}
        if dist.get_rank() == 0:
            marker: Future[None] = Future()
            self._marker = marker
            response.upload_completion.add_done_callback(lambda written: self._mark(written, folder, record, marker))

    def _mark(self, written: Future[Any], folder: str, record: dict[str, Any], marker: Future[None]) -> None:
        try:
            written.result()
            self._place.publish(f"{folder}/{MARKER}", record | {"files": self._place.sizes(folder)})
            prune(self._place, self._keep, self._best_by, scored=self._scored)
        except (Exception, CheckpointException) as error:  # whatever it is: the training thread raises it, in `finish`
            marker.set_exception(error)
        else:
            marker.set_result(None)

    def copied(self) -> None:
        """Wait until the tensors may change again."""
        if self._saving is not None:
            self._saving.staging_completion.result()

    def finish(self) -> None:
        """Wait until the save under way is complete.

        Raises:
            OSError: it could not be written; the checkpoint before it is whole.
        """
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            saving.upload_completion.result()
            if self._marker is not None:
                self._marker.result()
        except (CheckpointException, OSError) as error:
            raise OSError(
                f"the checkpoint of step {self._step} could not be written to {self._place.root}: {_cause(error)}; "
                "the one before it is whole: make room and give the same command again"
            ) from error

    def close(self) -> None:
        self.finish()
        self._stager.close()


def prune(place: Place, keep: int, best_by: str, *, scored: bool = False) -> None:
    """Remove checkpoints that newer complete ones supersede, and what interrupted saves left; see `Checkpoints`."""
    files = {folder: place.sizes(folder) for folder in place.folders()}
    whole = [folder for folder, sizes in files.items() if MARKER in sizes]
    stay = set(whole[-keep:])
    if scored or best_by:
        stay |= {folder for folder in whole if SCORES not in files[folder]}
    if best_by:
        scores = {folder: place.read(f"{folder}/{SCORES}")[best_by] for folder in whole if SCORES in files[folder]}
        stay |= {max(scores, key=lambda folder: (scores[folder], folder))} if scores else set()
    for folder in files:
        if folder not in stay:
            place.remove(folder)


def write_atomically(path: Path, text: str) -> None:
    """The whole file or none of it, also after a crash."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
