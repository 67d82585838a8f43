"""Our loop and open_clip's own trainer go from the same weights over the same batches to the same weights.

Both are driven whole: `loop.train` to its artifact, `open_clip_train.main` to its checkpoint, each with its own loss, groups of
weight decay, clipping and schedule. So results of the two can differ only by the rows that each draws.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
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
from sightline.pipelines.train.spec import Launch, RunSpec, resolve
from sightline.recipes import find_recipe
from tests.processes import on_ranks

STEPS, BATCH = 15, 24


def spec_for(corpus: Corpus) -> RunSpec:
    """`clip_small`, narrower; the rate peaks at the recipe's own."""
    spec = find_recipe("clip_small")
    vision = {**spec.model.vision, "image_size": 32, "width": 64, "layers": 2}
    text = {**spec.model.text, "width": 64, "heads": 2}
    model = replace(spec.model, embed_dim=32, vision=vision, text=text, preprocess=replace(spec.model.preprocess, size=32))
    spec = replace(spec, model=model, data=replace(spec.data, corpus=corpus.location), steps=STEPS, global_batch=BATCH)
    return resolve(replace(spec, optim=replace(spec.optim, warmup_steps=4)), corpus, bf16_available=False)


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

    num_batches, num_samples = STEPS, STEPS * BATCH

    def __init__(self, spec: RunSpec, batches: list[Batch]) -> None:
        self._spec, self._batches = spec, batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        tokenizer = get_tokenizer(self._spec.model.tokenizer, self._spec.model.context_length)
        for batch in self._batches:
            yield self._spec.model.preprocess.normalise(batch.inputs), tokenizer(batch.captions)


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

    described = {
        "embed_dim": spec.model.embed_dim,
        "vision_cfg": spec.model.vision,
        "text_cfg": spec.model.text,
        "custom_text": True,
    }
    (folder / "configs").mkdir()
    (folder / "configs" / "narrow.json").write_text(json.dumps(described))
    open_clip.add_model_config(folder / "configs")
    torch.save(
        {name: tensor.reshape(()) if tensor.shape == (1,) else tensor for name, tensor in start.items()}, folder / "start.pt"
    )
    trainer.get_data = lambda *_, **__: {"train": DataInfo(Replayed(spec, batches))}
    optim = spec.optim
    options: dict[str, Any] = {"model": "narrow", "pretrained": folder / "start.pt", "train-data": "replayed", "device": "cpu"}
    options |= {"precision": "fp32", "batch-size": BATCH, "epochs": 1, "workers": 0, "logs": folder / "logs", "name": "theirs"}
    options |= {"lr": optim.lr, "beta1": optim.beta1, "beta2": optim.beta2, "eps": optim.eps, "wd": optim.weight_decay}
    options |= {"warmup": optim.warmup_steps, "grad-clip-norm": optim.clip_norm}
    trainer.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    checkpoint = torch.load(folder / "logs" / "theirs" / "checkpoints" / "epoch_1.pt", weights_only=False)
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    return weights


def moved(name: str, before: Tensor, after: Tensor) -> Tensor:
    """How far training took a parameter; without the bias of attention's keys, which no softmax sees: its gradient is rounding
    alone, and AdamW makes steps of it."""
    way = after.reshape(before.shape) - before
    if name.endswith("attn.in_proj_bias"):
        query, _, value = way.chunk(3)
        return torch.cat([query, value])
    return way


def test_both_trainers_end_in_the_same_weights(digits: Corpus, tmp_path: Path) -> None:
    """To float32: the gains of norms stay near one, where rounding 15 updates alone is 1e-5 of how far they come."""
    spec = spec_for(digits)
    ((steps, start, ours, peers),) = on_ranks(1, tmp_path / "ranks", both, spec, tmp_path)
    assert len(steps) == STEPS and steps[-1].loss < steps[0].loss
    assert spec.optim.clip_norm and min(step.grad_norm for step in steps) > spec.optim.clip_norm  # so clipping is compared too
    assert ours.keys() == peers.keys() == start.keys()
    for name, before in start.items():
        found, wanted = moved(name, before, ours[name]), moved(name, before, peers[name])
        error = (found - wanted).norm() / wanted.norm()
        assert wanted.norm() > 0 and error < 2e-5, f"{name}: {error:.2g} of its way"
