"""`clip_small` against open_clip's own trainer: equal architecture, optimiser and steps; equal start and batches, and its own.

    python -m benchmarks.clip_small_vs_open_clip CORPUS

First our trainer runs the recipe, and open_clip's goes over the very batches that ours read, from the same weights: what differs
then is the trainers. Beside it stands open_clip's trainer with its own random weights and its own order of the (image, caption)
rows of a CSV file, over as many steps. Recall@10 on the test split is computed for all by our evaluation, open_clip's weights
through a local folder. The result goes into BENCHMARKS.md with versions and the machine; runs are kept in a file beside this
one, so that an interrupted benchmark goes on. Needs the extra: pip install -e '.[dev]'.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.report import section
from sightline.models.load import load_model
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import evaluate
from sightline.pipelines.train.spec import RunSpec, resolve
from sightline.recipes import find_recipe
from tests.open_clip_trainer import both, described

EPOCHS = 4
SEEDS, OWN_SEEDS = range(2), range(11)
RUNS = Path(__file__).with_suffix(".jsonl")
PACKAGES = ("torch", "open_clip_torch", "ray")
METRICS = ("image_to_text_recall@10", "text_to_image_recall@10")
LAST = 28  # steps whose mean is the final loss
LOSS = r"Contrastive_loss: ([\d.]+)"
Scores = dict[str, float]


def main(corpus_path: str) -> None:
    corpus = Corpus.open(corpus_path)
    spec = find_recipe("clip_small")
    pairs = sum(len(corpus.captions(int(row))) for row in corpus.select("train"))
    steps = EPOCHS * (pairs // spec.global_batch)  # open_clip drops the rest of an epoch
    shared = {"corpus": corpus.root, "steps": steps, **{name: version(name) for name in PACKAGES}}
    same = {**shared, "recipe": spec.run_id}
    for seed in sorted(set(SEEDS) - set(finished(same, "ours"))):
        for who, scores in same_batches(corpus, replace(spec, steps=steps, seed=seed)).items():
            keep({**same, "seed": seed, "who": who, "scores": scores})
    for seed in sorted(set(OWN_SEEDS) - set(finished(shared, "peer"))):
        with tempfile.TemporaryDirectory() as folder:
            scores = scored(train_peer(corpus, spec, seed, Path(folder)), corpus)
        keep({**shared, "seed": seed, "who": "peer", "scores": scores})
    ours, replayed = ([finished(same, who)[seed] for seed in SEEDS] for who in ("ours", "replayed"))
    own = [finished(shared, "peer")[seed] for seed in OWN_SEEDS]
    what = (
        f"{steps} steps of {spec.global_batch} pairs, corpus root `{corpus.root[:12]}`, {len(corpus.select('test'))} test images; "
        f"by seed ({', '.join(map(str, SEEDS))}); for open_clip's own start and order the mean over {len(own)} seeds with its "
        "standard error"
    )
    section(
        "clip_small against open_clip's trainer",
        "python -m benchmarks.clip_small_vs_open_clip CORPUS",
        what,
        PACKAGES,
        ("metric", "Sightline", "open_clip, same start and batches", "ratio", "open_clip, its own"),
        [row(name, ours, replayed, own) for name in (*METRICS, "final loss")],
    )


def row(name: str, ours: list[Scores], replayed: list[Scores], own: list[Scores]) -> tuple[str, ...]:
    by_seed = (", ".join(f"{run[name]:.4f}" for run in runs) for runs in (ours, replayed))
    ratio = mean(run[name] for run in ours) / mean(run[name] for run in replayed)
    values = [run[name] for run in own if name in run]
    return (name, *by_seed, f"{ratio:.3f}", f"{mean(values):.3f} ± {stdev(values) / len(values) ** 0.5:.3f}" if values else "")


def keep(line: dict[str, Any]) -> None:
    with RUNS.open("a") as file:
        file.write(json.dumps(line) + "\n")


def finished(setting: Mapping[str, Any], who: str) -> dict[int, Scores]:
    """A trainer's runs of the same setting, by seed: a run takes minutes, so each is kept."""
    wanted = {**setting, "who": who}
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    return {line["seed"]: line["scores"] for line in lines if {name: line.get(name) for name in wanted} == wanted}


def scored(model: Path, corpus: Corpus) -> Scores:
    found = evaluate(load_model(str(model)), corpus).metrics
    return {name: found[name] for name in METRICS}


def same_batches(corpus: Corpus, spec: RunSpec) -> dict[str, Scores]:
    """Both trainers over the same batches from the same weights: scores and final losses."""
    spec = resolve(replace(spec, data=replace(spec.data, corpus=corpus.location)), corpus, bf16_available=False)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            steps, _, _, theirs = both(spec, folder)
        finally:
            dist.destroy_process_group()
        log = (folder / "logs" / "theirs" / "out.log").read_text()
        losses = {"ours": [step.loss for step in steps], "replayed": [float(one) for one in re.findall(LOSS, log)]}
        assert {len(one) for one in losses.values()} == {spec.steps}
        models = {"ours": folder / "ours" / "artifact", "replayed": as_folder(spec, theirs, folder / "peer")}
        return {who: scored(models[who], corpus) | {"final loss": mean(losses[who][-LAST:])} for who in models}


def train_peer(corpus: Corpus, spec: RunSpec, seed: int, folder: Path) -> Path:
    """open_clip_train.main on the same rows; its last checkpoint as a folder that open_clip (and `load_model`) reads."""
    run_peer(corpus, spec, seed, folder, EPOCHS)
    checkpoint = torch.load(folder / "logs" / "peer" / "checkpoints" / f"epoch_{EPOCHS}.pt", weights_only=False)
    weights = {name.removeprefix("module."): tensor for name, tensor in checkpoint["state_dict"].items()}
    return as_folder(spec, weights, folder / "peer")


def as_folder(spec: RunSpec, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """Weights as a folder of open_clip's."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "open_clip_model.safetensors")
    preprocess = asdict(spec.model.preprocess)
    facts = {"model_cfg": described(spec), "preprocess_cfg": {"mean": preprocess["mean"], "std": preprocess["std"]}}
    (folder / "open_clip_config.json").write_text(json.dumps(facts))
    return folder


def run_peer(corpus: Corpus, spec: RunSpec, seed: int, folder: Path, epochs: int, log_every: int = 100) -> None:
    """open_clip_train.main with the same settings; its log and checkpoints are in `folder/logs/peer`."""
    table = folder / "train.csv"
    (folder / "images").mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filepath", "title"])
        for row in corpus.select("train"):
            image = folder / "images" / f"{row}.jpg"
            image.write_bytes(corpus.image(int(row)))
            writer.writerows([image, caption] for caption in corpus.captions(int(row)))
    (folder / "configs").mkdir()
    (folder / "configs" / "clip_small.json").write_text(json.dumps(described(spec)))
    optim = spec.optim
    options = {
        "dataset-type": "csv",
        "train-data": table,
        "csv-separator": "\t",
        "csv-img-key": "filepath",
        "csv-caption-key": "title",
        "model": "clip_small",
        "precision": "fp32",
        "device": "cpu",
        "workers": 1,
        "batch-size": spec.global_batch,
        "epochs": epochs,
        "log-every-n-steps": log_every,
        "lr": optim.lr,
        "beta1": optim.beta1,
        "beta2": optim.beta2,
        "eps": optim.eps,
        "wd": optim.weight_decay,
        "warmup": optim.warmup_steps,
        "grad-clip-norm": optim.clip_norm,
        "logs": folder / "logs",
        "name": "peer",
        "seed": seed,
    }
    start = (
        "import sys, open_clip\n"
        f"open_clip.add_model_config({str(folder / 'configs')!r})\n"
        "from open_clip_train.main import main\n"
        "main(sys.argv[1:])\n"
    )
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    subprocess.run(
        [sys.executable, "-c", start, *flags, "--local-loss", "--gather-with-grad"],
        check=True,
        stdout=sys.stderr,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
