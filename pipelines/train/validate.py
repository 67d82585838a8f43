"""A checkpoint's scores, computed beside the training by whoever has a processor free: no step waits for them.

They lie in `scores.json` of the checkpoint's folder, and a checkpoint that has some is not evaluated again; `validation.jsonl` of
the run has a line for each.
"""

from __future__ import annotations

import json
import os

import torch
from torch.distributed.checkpoint import state_dict_loader

from sightline.models.artifact import Ready, ready
from sightline.models.towers import build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import evaluate
from sightline.pipelines.train import locked
from sightline.pipelines.train.checkpoints import SCORES, Checkpoint, Place, complete
from sightline.pipelines.train.spec import Launch, RunSpec

NAME = "validation.jsonl"


def waiting(spec: RunSpec, launch: Launch) -> list[Checkpoint]:
    """The complete checkpoints without scores, oldest first."""
    place = Place(launch.saved_at)
    found = complete(launch.saved_at, spec.run_id)
    return [checkpoint for checkpoint in found if SCORES not in place.sizes(checkpoint.path.rpartition("/")[2])]


def validate(spec: RunSpec, launch: Launch, checkpoint: Checkpoint) -> dict[str, float]:
    """Evaluate a checkpoint on `launch.evaluate`, in this process, and leave its scores in its folder.

    Raises:
        ValueError: the split has no rows, or `launch.keep_best` is no metric of this corpus.
    """
    corpus = Corpus.open(spec.data.corpus, spec.data.root)
    root, _, folder = checkpoint.path.rpartition("/")
    place = Place(root)
    metrics = evaluate(restore(spec, corpus, place, folder), corpus, launch.evaluate).metrics
    if launch.keep_best and launch.keep_best not in metrics:
        raise ValueError(f"there is no metric {launch.keep_best!r}; --keep-best may be {', '.join(sorted(metrics))}")
    # First the line: a checkpoint that has scores is not evaluated again, so that a kill in between may cost a second line only.
    with (launch.run_dir / NAME).open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # cut off by a kill
                file.write(b"\n")
        file.write(json.dumps({"step": checkpoint.step, **metrics}).encode() + b"\n")
    place.publish(f"{folder}/{SCORES}", metrics)
    return metrics


def restore(spec: RunSpec, corpus: Corpus, place: Place, folder: str) -> Ready:
    """The model of a checkpoint, whole in this process; its moving average, where the run keeps one."""
    torch.manual_seed(spec.seed)
    towers = build(spec.model)
    trunk = locked.detach_trunk(towers, spec.model)
    text = locked.detach_text(towers, spec.model, spec.label_texts)
    averaged = spec.optim.ema > 0
    weights = dict(towers.state_dict())
    trained = {name for name, parameter in towers.named_parameters() if parameter.requires_grad}
    target = {"model": weights}
    if averaged:  # into tensors of its own: the two are read at once
        target["ema"] = {name: weights[name].clone() for name in trained}
    state_dict_loader.load(target, storage_reader=place.reader(folder), no_dist=True)
    towers.load_state_dict(target["model"] | target.get("ema", {}))
    if trunk is not None:
        towers.visual.trunk = trunk
    if text is not None:
        towers.text = text
    name = f"{spec.recipe}-{spec.run_id}/{folder}"
    return ready(spec.model, towers.eval().requires_grad_(False), name, folder, spec.model.classes or corpus.classes)
