"""`clip_small` against open_clip's own trainer: equal architecture, optimiser, batch, steps and photos.

    python -m benchmarks.clip_small_vs_open_clip CORPUS

open_clip's trainer takes (image, caption) rows from a CSV file, ours takes images whose captions take turns; both see
the same number of pairs. Recall@10 on the test split is computed for both by our evaluation, open_clip's through its
weights as a local folder. The result goes into BENCHMARKS.md with versions and the machine; the runs are kept
in a file beside this one, so that an interrupted benchmark goes on. Needs the extra: pip install -e '.[dev]'.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.report import section
from sightline.models.load import load_model
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import evaluate
from sightline.pipelines.train.spec import RunSpec
from sightline.recipes import find_recipe

EPOCHS = 4
SEEDS = range(11)
RUNS = Path(__file__).with_suffix(".jsonl")
PACKAGES = ("torch", "open_clip_torch", "ray")
METRICS = ("image_to_text_recall@10", "text_to_image_recall@10")


def main(corpus_path: str) -> None:
    corpus = Corpus.open(corpus_path)
    spec = find_recipe("clip_small")
    pairs = sum(len(corpus.captions(int(row))) for row in corpus.select("train"))
    steps = EPOCHS * (pairs // spec.global_batch)  # open_clip drops the rest of an epoch
    shared = {"corpus": corpus.root, "steps": steps, **{name: version(name) for name in PACKAGES}}
    settings = {"ours": {**shared, "recipe": spec.run_id}, "peer": shared}
    for who, train in TRAINERS.items():
        setting = settings[who]
        for seed in sorted(set(SEEDS) - set(finished(setting, who))):
            with tempfile.TemporaryDirectory() as folder:
                scores = evaluate(load_model(str(train(corpus, spec, steps, seed, Path(folder)))), corpus).metrics
            line = {**setting, "seed": seed, "who": who, "scores": {name: scores[name] for name in METRICS}}
            with RUNS.open("a") as file:
                file.write(json.dumps(line) + "\n")
    report(corpus, spec, steps, *([finished(settings[who], who)[seed] for seed in SEEDS] for who in TRAINERS))


def finished(setting: Mapping[str, Any], who: str) -> dict[int, dict[str, float]]:
    """A trainer's runs of the same setting, by seed: a run takes minutes, so each is kept."""
    wanted = {**setting, "who": who}
    lines = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
    return {line["seed"]: line["scores"] for line in lines if {name: line.get(name) for name in wanted} == wanted}


def train_ours(corpus: Corpus, spec: RunSpec, steps: int, seed: int, folder: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "sightline",
        "train",
        spec.recipe,
        f"corpus={corpus.location}",
        f"steps={steps}",
        f"seed={seed}",
    ]
    done = subprocess.run([*command, "--runs", str(folder / "runs"), "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(json.loads(done.stdout.splitlines()[-1])["artifact"])


def train_peer(corpus: Corpus, spec: RunSpec, steps: int, seed: int, folder: Path) -> Path:
    """open_clip_train.main on the same rows; its last checkpoint as a folder that open_clip (and `load_model`) reads."""
    run_peer(corpus, spec, seed, folder, EPOCHS)
    checkpoint = torch.load(folder / "logs" / "peer" / "checkpoints" / f"epoch_{EPOCHS}.pt", weights_only=False)
    weights = {name.removeprefix("module."): tensor.contiguous() for name, tensor in checkpoint["state_dict"].items()}
    (folder / "peer").mkdir()
    save_file(weights, folder / "peer" / "open_clip_model.safetensors")
    preprocess = asdict(spec.model.preprocess)
    described = {"model_cfg": peer_config(spec), "preprocess_cfg": {"mean": preprocess["mean"], "std": preprocess["std"]}}
    (folder / "peer" / "open_clip_config.json").write_text(json.dumps(described))
    return folder / "peer"


TRAINERS = {"ours": train_ours, "peer": train_peer}


def peer_config(spec: RunSpec) -> dict[str, Any]:
    """The model in open_clip's own words."""
    return {
        "embed_dim": spec.model.embed_dim,
        "vision_cfg": dict(spec.model.vision),
        "text_cfg": dict(spec.model.text),
        "custom_text": True,
    }


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
    (folder / "configs" / "clip_small.json").write_text(json.dumps(peer_config(spec)))
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


def report(corpus: Corpus, spec: RunSpec, steps: int, ours: list[dict[str, float]], peer: list[dict[str, float]]) -> None:
    seeds = ", ".join(map(str, SEEDS))
    what = (
        f"{steps} steps of {spec.global_batch} pairs, corpus root `{corpus.root[:12]}`, {len(corpus.select('test'))} test images; "
        f"means over the seeds {seeds} with their standard errors (each in brackets)"
    )
    section(
        "clip_small against open_clip's trainer",
        "python -m benchmarks.clip_small_vs_open_clip CORPUS",
        what,
        PACKAGES,
        ("metric", "Sightline", "open_clip", "ratio"),
        [(name, cell(ours, name), cell(peer, name), f"{mean_of(ours, name) / mean_of(peer, name):.2f}") for name in METRICS],
    )


def mean_of(runs: list[dict[str, float]], name: str) -> float:
    return mean(run[name] for run in runs)


def cell(runs: list[dict[str, float]], name: str) -> str:
    """The mean over seeds, its standard error, and each."""
    values = [run[name] for run in runs]
    error = stdev(values) / len(values) ** 0.5
    return f"{mean(values):.3f} ± {error:.3f} ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main(*sys.argv[1:])
