"""The one training loop, for every objective, at any world size, under Ray Train, torchrun or alone.

Ways in which a run starts, in order: (1) its artifact exists: nothing to do; (2) a complete checkpoint exists: go on from its step;
(3) from the seed. The numbers of a step depend on the run's specification and the step alone: batch k is a function of k, the
learning rate is a function of k, augmentation is keyed by (seed, epoch, row), and the loss is the one over the global batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh

from sightline.models.losses import Share
from sightline.models.sharding import REPLICATED, Strategy, choose, clip_gradients, make_mesh, reduce_replicated, shard
from sightline.models.text import get_tokenizer
from sightline.models.towers import Towers, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed import ledger
from sightline.pipelines.feed.inline import InlineFeed, feature_loader, pixel_loader
from sightline.pipelines.train import checkpoints, locked
from sightline.pipelines.train.finish import write_artifact
from sightline.pipelines.train.spec import Launch, OptimConfig, RunSpec, select_rows


@dataclass(frozen=True)
class Step:
    """What one optimizer step reports; the loss is the one over the global batch, `read` the ledger's link."""

    step: int
    loss: float
    grad_norm: float
    lr: float
    logit_scale: float
    samples_per_s: float
    read: str


def train(
    spec: RunSpec,
    launch: Launch,
    corpus: Corpus,
    report: Callable[[Step], None] = lambda step: None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Step]:
    """Train on this rank of an initialised process group; on rank 0, end with the artifact in `launch.run_dir`.

    `report` gets rank 0's steps, `say` what a person should know before the first of them.

    Returns:
        The steps that this call did (none if it only had to finish).

    Raises:
        ValueError: there are more workers than pairs in a global batch.
        FloatingPointError: a loss that is not finite; the last checkpoint stays as it was.
    """
    rank, world, group = dist.get_rank(), dist.get_world_size(), dist.group.WORLD
    assert group is not None
    if spec.global_batch < world:
        raise ValueError(
            f"global_batch={spec.global_batch} gives {world} workers nothing to do; give at most {spec.global_batch} workers"
        )
    share = Share.of(spec.global_batch, group)
    device = torch.device("cuda", torch.cuda.current_device()) if launch.gpus else torch.device("cpu")

    if spec.precision == "bf16" and launch.gpus and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError("this GPU does not compute in bf16; give precision=fp32")
    check_shared(launch.run_dir, device)

    # -- towers: the same random weights on every rank, then each keeps its shards
    torch.manual_seed(spec.seed)
    towers = build(spec.model)
    trunk = locked.detach_trunk(towers, spec.model)
    strategy, mesh, reason = placement(towers, launch.strategy, device)
    if rank == 0:
        say(f"{strategy}: {reason}")
    shard(towers.to(device), mesh, bf16=spec.precision == "bf16")
    optimizer = adamw(towers, spec.optim)

    # -- data: this rank's part of every batch, from any step on
    rows, _ = select_rows(corpus, spec.data)
    if trunk is None:
        load = pixel_loader(corpus, spec.data.augment, spec.model.preprocess, spec.order_key)
    else:
        features = locked.features(trunk, corpus, rows, spec.model, launch.run_dir, device)
        load = feature_loader(corpus, features, spec.data.augment, spec.order_key)
    feed = InlineFeed(load, rows, spec.order_key, spec.global_batch, share.own, threads=max(2, launch.threads))
    tokenizer = get_tokenizer(spec.model.tokenizer, spec.model.context_length)
    backward = spec.objective.prepare(
        tokenizer, share, lambda: (text for row in rows for text in corpus.captions(int(row))), launch.at_once
    )

    # -- where to start
    folder = launch.run_dir / "checkpoints"
    found = [checkpoints.newest(folder, spec.run_id) if rank == 0 else None]
    dist.broadcast_object_list(found, src=0)  # one answer for all, also where a network file system lags
    checkpoint = found[0]
    if checkpoint:
        checkpoints.load(checkpoint, towers, optimizer)
    first, read = (checkpoint.step, checkpoint.read) if checkpoint else (0, ledger.origin(spec.order_key))

    # -- the loop
    done: list[Step] = []
    began = time.monotonic()
    for step, batch in enumerate(feed.batches(first, spec.steps), start=first):
        lr = learning_rate(spec.optim, step, spec.steps)
        for param_group in optimizer.param_groups:
            param_group["lr"] = lr
        inputs = batch.inputs.to(device)
        inputs = spec.model.preprocess.normalise(inputs) if trunk is None else inputs
        mean_loss = backward(towers, inputs, batch.captions, partial(seed_torch, spec.seed, step))
        reduce_replicated(towers, group)
        norm = clip_gradients(towers, spec.optim.clip_norm or float("inf"))
        dist.all_reduce(mean_loss, group=group)
        words = torch.from_numpy(ledger.words_of(batch.uids, batch.epochs, batch.first).sum(axis=0)).to(device)
        dist.all_reduce(words, group=group)
        read = ledger.link(read, words.cpu().numpy())
        if not (torch.isfinite(mean_loss) and torch.isfinite(norm)):
            uids = share.gather(torch.from_numpy(batch.uids.copy()).to(device)).cpu().numpy()
            raise FloatingPointError(stopped(launch.run_dir, step + 1, float(mean_loss) / world, float(norm), uids, rank))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            towers.logit_scale.clamp_(max=4.6052)  # 100, as in CLIP
        now = time.monotonic()
        done.append(
            Step(
                step + 1,
                float(mean_loss) / world,
                float(norm),
                lr,
                float(towers.logit_scale.detach().exp()),
                spec.global_batch / (now - began),
                read,
            )
        )
        began = now
        if rank == 0:
            report(done[-1])
        if (step + 1) % launch.checkpoint_every == 0 or step + 1 == spec.steps:
            checkpoints.save(folder, step + 1, done[-1].loss, read, spec.run_id, towers, optimizer)
    last = done[-1] if done else checkpoint
    assert last is not None
    write_artifact(spec, launch, corpus, towers, trunk, last.loss)
    return done


def stopped(run_dir: Path, step: int, loss: float, norm: float, uids: NDArray[np.uint8], rank: int) -> str:
    """Leave behind which rows [B, 16] a step had that cannot be used, and say so."""
    path = run_dir / f"stopped-at-step-{step}.json"
    names = [row.tobytes().hex() for row in uids]
    if rank == 0:
        facts = {"step": step, "loss": str(loss), "grad_norm": str(norm), "uids": names}
        checkpoints.write_atomically(path, json.dumps(facts, indent=1) + "\n")
    return (
        f"step {step} has loss {loss} and gradient norm {norm}, and was not taken; its {len(names)} rows ({names[0]}, ...) are in "
        f"{path}; the last checkpoint is whole; begin a run with a smaller lr, or without these rows"
    )


def placement(towers: Towers, strategy: Strategy | Literal["auto"], device: torch.device) -> tuple[Strategy, DeviceMesh, str]:
    """How the towers' weights lie on the workers, and why; the same on all of them."""
    hosts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(hosts, platform.node())
    machines = Counter(hosts)
    per_machine = min(machines.values()) if len(set(machines.values())) == 1 else 1
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // machines[platform.node()]
    if strategy == "auto":
        choice = [choose(sum(p.numel() for p in towers.parameters()), memory, len(hosts), per_machine)]
        dist.broadcast_object_list(choice, src=0)
        strategy, reason = choice[0]
    else:
        reason = "as asked"
    return strategy, make_mesh(strategy, device.type, len(hosts), per_machine), reason


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


def adamw(towers: Towers, options: OptimConfig) -> torch.optim.AdamW:
    """AdamW in three groups: matrices decay, vectors do not, and the replicated scale stands apart (it is no DTensor)."""
    named = [(name, parameter) for name, parameter in towers.named_parameters() if parameter.requires_grad]
    no_decay = towers.no_weight_decay() if hasattr(towers, "no_weight_decay") else set()
    matrices = [p for name, p in named if p.ndim >= 2 and name not in no_decay]
    vectors = [p for name, p in named if (p.ndim < 2 or name in no_decay) and name not in REPLICATED]
    scale = [p for name, p in named if name in REPLICATED]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        {"params": scale, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
    )


def learning_rate(options: OptimConfig, step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine to zero (Loshchilov and Hutter 2017)."""
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    return options.lr * (1 + cos(pi * progress)) / 2
