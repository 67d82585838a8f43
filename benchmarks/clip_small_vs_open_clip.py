"""`clip_small` against open_clip's own trainer: equal architecture, optimiser, batch, steps and photos.

    python benchmarks/clip_small_vs_open_clip.py CORPUS

open_clip's trainer takes (image, caption) rows from a CSV file, ours takes images whose captions take turns; both see
the same number of pairs. Recall@10 on the test split is computed for both by our evaluation, open_clip's through its
weights as a local folder. The result goes into BENCHMARKS.md with versions and the machine. Needs the
extra: pip install -e '.[dev]'.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sightline.models.load import load_model
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import evaluate
from sightline.pipelines.train.spec import RunSpec
from sightline.recipes import find_recipe

REPORT = Path(__file__).resolve().parent.parent / "BENCHMARKS.md"
EPOCHS = 4
METRICS = ("image_to_text_recall@10", "text_to_image_recall@10")


def main(corpus_path: str) -> None:
    corpus = Corpus.open(corpus_path)
    spec = find_recipe("clip_small")
    pairs = sum(len(corpus.captions(int(row))) for row in corpus.select("train"))
    steps = EPOCHS * (pairs // spec.global_batch)  # open_clip drops the rest of an epoch
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        peer = evaluate(load_model(str(train_peer(corpus, spec, folder))), corpus).metrics
        ours = evaluate(load_model(str(train_ours(corpus_path, steps, folder))), corpus).metrics
    report(corpus, spec, steps, ours, peer)


def train_ours(corpus: str, steps: int, folder: Path) -> Path:
    command = [sys.executable, "-m", "sightline", "train", "clip_small", f"corpus={corpus}", f"steps={steps}"]
    done = subprocess.run([*command, "--runs", str(folder / "runs"), "--json"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(json.loads(done.stdout.splitlines()[-1])["artifact"])


def train_peer(corpus: Corpus, spec: RunSpec, folder: Path) -> Path:
    """open_clip_train.main on the same rows; its last checkpoint as a folder that open_clip (and `load_model`) reads."""
    table = folder / "train.csv"
    (folder / "images").mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["filepath", "title"])
        for row in corpus.select("train"):
            image = folder / "images" / f"{row}.jpg"
            image.write_bytes(corpus.image(int(row)))
            writer.writerows([image, caption] for caption in corpus.captions(int(row)))
    config: dict[str, Any] = {
        "embed_dim": spec.model.embed_dim,
        "vision_cfg": dict(spec.model.vision),
        "text_cfg": dict(spec.model.text),
        "custom_text": True,
    }
    (folder / "configs").mkdir()
    (folder / "configs" / "clip_small.json").write_text(json.dumps(config))
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
        "epochs": EPOCHS,
        "lr": optim.lr,
        "beta1": optim.beta1,
        "beta2": optim.beta2,
        "eps": optim.eps,
        "wd": optim.weight_decay,
        "warmup": optim.warmup_steps,
        "grad-clip-norm": optim.clip_norm,
        "logs": folder / "logs",
        "name": "peer",
        "seed": spec.seed,
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
    checkpoint = torch.load(folder / "logs" / "peer" / "checkpoints" / f"epoch_{EPOCHS}.pt", weights_only=False)
    weights = {name.removeprefix("module."): tensor.contiguous() for name, tensor in checkpoint["state_dict"].items()}
    (folder / "peer").mkdir()
    save_file(weights, folder / "peer" / "open_clip_model.safetensors")
    preprocess = asdict(spec.model.preprocess)
    (folder / "peer" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": {"mean": preprocess["mean"], "std": preprocess["std"]}})
    )
    return folder / "peer"


def report(corpus: Corpus, spec: RunSpec, steps: int, ours: dict[str, float], peer: dict[str, float]) -> None:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "open_clip_torch", "ray"))
    lines = [
        "## clip_small against open_clip's trainer\n",
        f"`python benchmarks/clip_small_vs_open_clip.py CORPUS`: {steps} steps of {spec.global_batch} pairs, corpus root "
        f"`{corpus.root[:12]}`, {int(ours['images'])} test images, one run each; {versions}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores.\n",
        "| metric | Sightline | open_clip | ratio |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {ours[name]:.3f} | {peer[name]:.3f} | {ours[name] / peer[name]:.2f} |" for name in METRICS),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    head = REPORT.read_text() if REPORT.exists() else "# Benchmarks\n\nWritten by `make bench`.\n"
    before = head.partition("## clip_small against open_clip's trainer")[0].rstrip() + "\n\n"
    REPORT.write_text(before + text)


if __name__ == "__main__":
    main(*sys.argv[1:])
