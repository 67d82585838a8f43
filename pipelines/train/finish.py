"""The end of a run: the sharded weights become one artifact, with where they came from."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from sightline.models.artifact import Artifact, write
from sightline.models.towers import Towers
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.spec import Launch, RunSpec

PACKAGES = ("ray", "torch", "torchvision", "open_clip_torch", "timm", "pyarrow", "numpy", "pillow", "simplejpeg")


def write_artifact(
    spec: RunSpec,
    launch: Launch,
    corpus: Corpus,
    towers: Towers,
    trunk: nn.Module | None,
    text: nn.Module | None,
    final_loss: float,
) -> None:
    """Gather the full weights on rank 0 and write `run_dir/artifact`; called by all ranks."""
    weights: dict[str, Any] = get_model_state_dict(towers, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    folder = launch.run_dir / "artifact"
    if dist.get_rank() == 0 and not folder.exists():
        for prefix, frozen in (("visual.trunk", trunk), ("text", text)):  # what training did without
            if frozen is not None:
                weights |= {f"{prefix}.{name}": tensor.cpu() for name, tensor in frozen.state_dict().items()}
        artifact = Artifact(
            name=f"{spec.recipe}-{spec.run_id}",
            model=spec.model,
            classes=spec.model.classes or corpus.classes,
            provenance=provenance(spec, final_loss),
        )
        write(folder, artifact, weights, golden_texts=golden_texts(spec, corpus))
    dist.barrier()


def golden_texts(spec: RunSpec, corpus: Corpus) -> list[str]:
    """What the text tower proves itself on: the first row's captions, or of a dense head the classes."""
    if spec.model.is_classifier:
        return []
    return [*(spec.model.classes if spec.model.dense else corpus.captions(0)), "a photo"]


def provenance(spec: RunSpec, final_loss: float) -> dict[str, Any]:
    """What an answer is traced back through: the corpus, the run, its end, and what computed it."""
    return {
        "corpus_root": spec.data.root,
        "view": spec.data.view or None,
        "run_id": spec.run_id,
        "run": asdict(spec),
        "steps": spec.steps,
        "final_loss": final_loss,
        "versions": versions(),
        "machine": platform.machine(),
    }


def versions() -> dict[str, str]:
    """Of what computed a run, by package."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # Ray, where a run did without
            found[name] = version(name)
    return found
