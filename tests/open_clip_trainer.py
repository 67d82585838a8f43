"""open_clip's own trainer on the batches that ours has just read, from the same weights: what is left to differ is the trainers.

Both are driven whole: `loop.train` to its artifact, `open_clip_train.main` to its checkpoint, each with its own loss, groups of
weight decay, clipping and schedule.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor

from sightline.models.text import get_tokenizer
from sightline.models.towers import build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import Batch, Feed, InlineFeed
from sightline.pipelines.train.loop import Hooks, train
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import Launch, RunSpec


@dataclass
class Recording:
    """A feed that keeps what it gave."""

    feed: InlineFeed
    kept: list[Batch]

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        for batch in self.feed.batches(first, last):
            self.kept.append(batch)
            yield batch


class Replayed:
    """Recorded batches as open_clip's trainer wants its data."""

    def __init__(self, spec: RunSpec, batches: list[Batch]) -> None:
        self._spec, self._batches = spec, batches
        self.num_batches, self.num_samples = spec.steps, spec.steps * spec.global_batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        tokenizer = get_tokenizer(self._spec.model.tokenizer, self._spec.model.context_length)
        for batch in self._batches:
            yield self._spec.model.preprocess.normalise(batch.inputs), tokenizer(batch.captions)


def described(spec: RunSpec) -> dict[str, Any]:
    """The model in open_clip's own words."""
    return {
        "embed_dim": spec.model.embed_dim,
        "vision_cfg": dict(spec.model.vision),
        "text_cfg": dict(spec.model.text),
        "custom_text": True,
    }


def both(spec: RunSpec, folder: Path) -> tuple[list[Step], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Our steps; and the weights at the start, after our trainer, and after theirs."""
    torch.manual_seed(spec.seed)
    start = {name: tensor.clone() for name, tensor in build(spec.model).state_dict().items()}
    kept: list[Batch] = []

    def recording(feed: InlineFeed) -> Feed:
        return Recording(feed, kept)

    launch = Launch(folder / "ours", checkpoint_every=1000)
    steps = train(spec, launch, Corpus.open(spec.data.corpus, spec.data.root), Hooks(feed=recording))
    return steps, start, load_file(launch.run_dir / "artifact" / "weights.safetensors"), theirs(spec, folder, start, kept)


def theirs(spec: RunSpec, folder: Path, start: dict[str, Tensor], batches: list[Batch]) -> dict[str, Tensor]:
    """The weights after `open_clip_train.main` on the same batches."""
    from open_clip_train import main as trainer
    from open_clip_train.data import DataInfo

    (folder / "configs").mkdir()
    (folder / "configs" / "replayed.json").write_text(json.dumps(described(spec)))
    open_clip.add_model_config(folder / "configs")
    torch.save(
        {name: tensor.reshape(()) if tensor.shape == (1,) else tensor for name, tensor in start.items()}, folder / "start.pt"
    )
    trainer.get_data = lambda *_, **__: {"train": DataInfo(Replayed(spec, batches))}
    optim = spec.optim
    options: dict[str, Any] = {"model": "replayed", "pretrained": folder / "start.pt", "train-data": "replayed", "device": "cpu"}
    options |= {
        "precision": "fp32",
        "batch-size": spec.global_batch,
        "epochs": 1,
        "workers": 0,
        "logs": folder / "logs",
        "name": "theirs",
    }
    options |= {"lr": optim.lr, "beta1": optim.beta1, "beta2": optim.beta2, "eps": optim.eps, "wd": optim.weight_decay}
    options |= {"log-every-n-steps": 1, "warmup": optim.warmup_steps, "grad-clip-norm": optim.clip_norm}
    trainer.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    checkpoint = torch.load(folder / "logs" / "theirs" / "checkpoints" / "epoch_1.pt", weights_only=False)
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    return weights
