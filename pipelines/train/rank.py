"""One rank of a run: everything that a step needs, set up in the order in which it must be, and the step itself.

The numbers of a step depend on the run's specification and the step alone: the batch, the learning rate, augmentation and dropout
are functions of it, and the loss is the one over the global batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from sightline.models.flops import cost, peak
from sightline.models.losses import Share
from sightline.models.objectives import Backward, Targets
from sightline.models.sharding import Strategy, check_fits, choose, clip_gradients, make_mesh, reduce_replicated, shard
from sightline.models.text import get_tokenizer
from sightline.models.towers import Towers, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed import ledger
from sightline.pipelines.feed.inline import Batch, InlineFeed, Loader, PixelLoader, feature_loader
from sightline.pipelines.feed.labels import Labelled, places
from sightline.pipelines.feed.masks import MaskClasses, Masked
from sightline.pipelines.train import locked
from sightline.pipelines.train.checkpoints import Checkpoints, State, write_atomically
from sightline.pipelines.train.clock import Clock
from sightline.pipelines.train.optim import Ema, adamw, learning_rate, set_rate
from sightline.pipelines.train.spec import Launch, RunSpec, samples_of, select_rows


@dataclass(frozen=True)
class Step:
    """What one optimizer step reports; the loss is the one over the global batch, `read` the ledger's link.

    Attributes:
        logit_scale: None where the model has none.
        workers: how many took it together.
        mfu: the model's arithmetic as a share of what the workers' GPUs could do; None where their peak is not known.
        seconds: where they went, see `clock.py`; they sum to the time since the step before.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    logit_scale: float | None
    samples_per_s: float
    mfu: float | None
    seconds: Mapping[str, float]
    read: str
    workers: int


@dataclass
class Rank:
    """One worker's part of a run."""

    spec: RunSpec
    launch: Launch
    device: torch.device
    share: Share
    state: State
    trunk: nn.Module | None
    text: nn.Module | None
    feed: InlineFeed
    labelled: Labelled | None
    masked: Masked | None
    backward: Backward
    checkpoints: Checkpoints
    clock: Clock
    leaving: bool = False

    def take(self, step: int, batch: Batch, read: str, leaving: bool) -> Step:
        """One optimizer step on a batch.

        Args:
            read: the ledger's link of the step before.
            leaving: this worker is about to be taken away; `self.leaving` then says on all ranks that one of them is.

        Raises:
            FloatingPointError: the loss or the gradient is not finite; nothing was updated.
        """
        spec, towers, clock = self.spec, self.state.towers, self.clock
        clock.enter("compute")
        lr = learning_rate(spec.optim, step, spec.steps)
        set_rate(self.state.optimizer, lr)
        inputs = batch.inputs.to(self.device)
        masks_bHW = None
        if self.masked:
            masks_bHW = inputs[:, 3] if self.trunk is None else self.masked.masks(*self.feed.positions(step))
        inputs = spec.model.preprocess.normalise(inputs[:, :3]) if self.trunk is None else inputs
        labels_bL = self.labelled.weights(*self.feed.positions(step)) if self.labelled else None
        targets = Targets(batch.captions, labels_bL, masks_bHW)
        mean_loss = self.backward(towers, inputs, targets, partial(seed_torch, spec.seed, step))
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # so that computing is not counted as waiting

        clock.enter("communication")
        reduce_replicated(towers, dist.group.WORLD)
        norm = float(clip_gradients(towers, spec.optim.clip_norm or float("inf")))
        dist.all_reduce(mean_loss)
        loss = float(mean_loss) / len(self.share.counts)
        words = ledger.words_of(batch.uids, batch.visits, batch.first).sum(axis=0)
        told = torch.from_numpy(np.append(words, np.int64(leaving))).to(self.device)
        dist.all_reduce(told)
        total = told.cpu().numpy()
        read, self.leaving = ledger.link(read, total[:-1]), bool(total[-1])
        if not (isfinite(loss) and isfinite(norm)):
            uids = self.share.gather(torch.from_numpy(batch.uids.copy()).to(self.device)).cpu().numpy()
            raise FloatingPointError(stopped(self.launch, step + 1, loss, norm, uids, self.share.rank))

        clock.enter("checkpoint")
        self.checkpoints.copied()  # a save under way may still read the weights
        clock.enter("other")
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        scale = clamped_scale(towers)
        if self.state.ema:
            self.state.ema.update(towers, step)
        seconds = clock.take()
        rate = spec.global_batch / sum(seconds.values())
        mfu = rate * self.flops / self.peak if self.peak else None
        return Step(step + 1, loss, norm, lr, scale, rate, mfu, seconds, read, len(self.share.counts))

    @cached_property
    def flops(self) -> int:
        """Of a training step, for one sample: the model's alone, whatever is computed again (Chowdhery et al. 2022)."""
        return cost(self.spec.model, self.spec.contrasted).training

    @cached_property
    def peak(self) -> float | None:
        """Operations per second of all workers' GPUs; None where that is not known."""
        one = peak(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None
        return one * len(self.share.counts) if one else None


def set_up(spec: RunSpec, launch: Launch, corpus: Corpus, say: Callable[[str], None]) -> Rank:
    """Everything up to the first step but the checkpoint; called by all ranks of an initialised process group.

    Raises:
        ValueError: there are more workers than samples in a global batch, or what was asked for does not fit the device.
    """
    clock, group = Clock(), dist.group.WORLD
    assert group is not None
    if spec.global_batch < dist.get_world_size():
        raise ValueError(
            f"global_batch={spec.global_batch} gives {dist.get_world_size()} workers nothing to do; "
            f"give at most {spec.global_batch} workers"
        )
    share = Share.of(spec.global_batch, group)
    device = torch.device("cuda", torch.cuda.current_device()) if launch.gpus else torch.device("cpu")
    if spec.precision == "bf16" and launch.gpus and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("this GPU does not compute in bf16; give precision=fp32")
    check_shared(launch.run_dir, device)

    # -- towers: the same random weights on every rank, then each keeps its shards
    strategy, mesh, reason = placement(locked.count_parameters(spec.model), launch.strategy, device)
    torch.manual_seed(spec.seed)
    towers = build(spec.model)
    trunk = locked.detach_trunk(towers, spec.model)
    text = locked.detach_text(towers, spec.model, spec.label_texts)
    if share.rank == 0:
        say(f"{len(share.counts)} worker{'s' * (len(share.counts) > 1)}, {strategy}: {reason}")
        if spec.global_batch % len(share.counts):
            say(
                f"a global batch of {spec.global_batch} on {len(share.counts)} workers: some take one sample more, weighted exactly"
            )
    shard(towers.to(device), mesh, bf16=spec.precision == "bf16", recompute=launch.recompute, compiled=spec.compiled)
    ema = Ema(towers, spec.optim.ema) if spec.optim.ema else None

    # -- data: this rank's part of every batch, from any step on
    rows, _ = select_rows(corpus, spec.data)
    labelled = labelled_rows(spec, corpus, rows) if spec.model.is_classifier else None
    masked = masked_rows(spec, corpus) if spec.model.dense else None
    mirrored = bool(masked and spec.data.augment.flip)
    features = {}
    if trunk is not None:
        features = locked.features(trunk, corpus, rows, spec.model, launch.run_dir, device, mirrored=mirrored)
    load: Loader
    if labelled:
        load = labelled.load
    elif masked:
        load = masked.load if trunk is None else partial(masked.load_kept, features)
    elif trunk is None:
        load = PixelLoader(corpus, spec.data.augment, spec.model.preprocess, spec.order_key)
    else:
        load = feature_loader(corpus, features, spec.data.augment, spec.order_key)

    def texts() -> Iterable[str]:
        return spec.model.classes if masked else (text for row in rows for text in corpus.captions(int(row)))

    tokenizer = get_tokenizer(spec.model.tokenizer, spec.model.context_length)
    return Rank(
        spec=spec,
        launch=launch,
        device=device,
        share=share,
        state=State(towers, adamw(towers, spec.optim), ema),
        trunk=trunk,
        text=text,
        feed=InlineFeed(
            load, samples_of(corpus, rows, spec.data), spec.order_key, spec.global_batch, share.own, threads=max(2, launch.threads)
        ),
        labelled=labelled,
        masked=masked,
        backward=spec.objective.prepare(tokenizer, share, texts, launch.at_once),
        checkpoints=Checkpoints(
            launch.saved_at, spec.run_id, keep=launch.keep, best_by=launch.keep_best, scored=bool(launch.evaluate)
        ),
        clock=clock,
    )


def labelled_rows(spec: RunSpec, corpus: Corpus, rows: NDArray[np.int64]) -> Labelled:
    """The rows as a classifier sees them."""
    return Labelled(
        corpus=corpus,
        rows=rows,
        places=places(corpus, rows, spec.model.classes),
        classes=len(spec.model.classes),
        options=spec.data.augment,
        preprocess=spec.model.preprocess,
        key=spec.order_key,
    )


def masked_rows(spec: RunSpec, corpus: Corpus) -> Masked:
    """The rows as a dense head sees them."""
    classes = MaskClasses.of(corpus, spec.model.classes)
    return Masked(corpus, classes, spec.data.augment, spec.model.preprocess, spec.order_key)


@torch.no_grad()
def clamped_scale(towers: Towers) -> float | None:
    """Keep the scale that is trained at 100 or less, as in CLIP, and return it; None for a model without one."""
    scale = getattr(towers, "pixel_scale", getattr(towers, "logit_scale", None))
    return None if scale is None else float(scale.clamp_(max=4.6052).exp())


def stopped(launch: Launch, step: int, loss: float, norm: float, uids: NDArray[np.uint8], rank: int) -> str:
    """Leave behind which rows [B, 16] a step had that cannot be used, and say so."""
    path = launch.run_dir / f"stopped-at-step-{step}.json"
    names = [row.tobytes().hex() for row in uids]
    if rank == 0:
        facts = {"step": step, "loss": str(loss), "grad_norm": str(norm), "uids": names}
        write_atomically(path, json.dumps(facts, indent=1) + "\n")
    return (
        f"step {step} has loss {loss} and gradient norm {norm}, and was not taken; its {len(names)} rows ({names[0]}, ...) are in "
        f"{path}; the last checkpoint is whole; begin a run with a smaller lr, or without these rows"
    )


def placement(parameters: int, strategy: Strategy | Literal["auto"], device: torch.device) -> tuple[Strategy, DeviceMesh, str]:
    """How so many parameters lie on the workers, and why; the same on all of them.

    Raises:
        ValueError: the workers have no room for them.
    """
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, platform.node())
    machines = Counter(hosts)
    per_machine = min(machines.values()) if len(set(machines.values())) == 1 else 1
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // machines[platform.node()]
    if strategy == "auto":
        choice = [choose(parameters, memory, len(hosts), per_machine)]
        dist.broadcast_object_list(choice, src=0)
        strategy, reason = choice[0]
    else:
        reason = "as asked"
    mesh = make_mesh(strategy, device.type, len(hosts), per_machine)
    check_fits(parameters, memory, mesh.shape[-1])
    return strategy, mesh, reason


def seed_torch(seed: int, step: int, first: int) -> None:
    """Torch's generators for rows of a step: dropout is a function of the run's seed, the step and the rows' place in the batch."""
    digest = hashlib.sha256(f"sl-dropout-1/{seed}/{step}/{first}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "little"))


def check_shared(run_dir: Path, device: torch.device) -> None:
    """Refuse a run folder that only some workers see: their parts of a checkpoint would lie on different machines.

    Raises:
        ValueError: rank 0's file is not there for every rank.
    """
    rank = dist.get_rank()
    name = [f".seen-by-all-{os.urandom(4).hex()}"]
    dist.broadcast_object_list(name, src=0)
    if rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / name[0]).touch()
    dist.barrier()
    seen = torch.tensor(int((run_dir / name[0]).exists()), device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MIN)
    if rank == 0:
        (run_dir / name[0]).unlink()
    if not seen:
        raise ValueError(f"not every worker sees {run_dir}; give --runs a folder that all machines share")
