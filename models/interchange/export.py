"""An artifact becomes a folder that another library loads as its own, and that library proves it before the folder has its name.

Each target is a module with the same few functions (`Target`): `refusal` says why a configuration does not fit, `write` makes the
files, and `embed` reads them back as the library's documentation tells its users to. What it gives for the golden images and texts
must be within the target's `TOLERANCE` of the artifact's own embeddings; a folder that is not never appears.
`sightline.json` beside the files keeps `artifact.json` (provenance, templates, classes) and the sha256 of each file.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from sightline.models import artifact
from sightline.models.interchange import hf, onnx, open_clip, timm
from sightline.models.interchange.origin import write_origin
from sightline.models.towers import ModelConfig, Towers


class Target(Protocol):
    """One library: a module with these names. Embeddings are unit vectors in float32; texts are None where it has no text tower."""

    TOLERANCE: float
    LOAD: str  # the line of Python that loads the folder

    def refusal(self, config: ModelConfig) -> str | None: ...

    def write(self, config: ModelConfig, towers: Towers, folder: Path) -> None: ...

    def embed(self, config: ModelConfig, folder: Path, image_BCHW: Tensor, tokens_NT: Tensor) -> tuple[Tensor, Tensor | None]: ...


TARGETS: Mapping[str, Target] = {"open_clip": open_clip, "timm": timm, "onnx": onnx, "hf": hf}


@dataclass(frozen=True)
class Exported:
    """What was written, and how far the library's embeddings are from ours: the largest difference in any component.

    Attributes:
        text_difference: None where the library has no text tower.
        load: the line of Python that loads the folder.
        files: sha256 of each file but `sightline.json`.
    """

    target: str
    folder: str
    image_difference: float
    text_difference: float | None
    load: str
    files: Mapping[str, str]


def export(source: Path, destination: Path, target: str) -> Exported:
    """Write the artifact (or the artifact of the run) at `source` for another library as the folder `destination`.

    Raises:
        FileNotFoundError: the source is no artifact.
        FileExistsError: the destination exists.
        ValueError: the target is unknown, cannot hold this model, or gives other embeddings.
        ModuleNotFoundError: the target needs an optional package.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; choose {', '.join(TARGETS)}")
    if destination.exists():
        raise FileExistsError(f"{destination} exists; name a new folder, or delete it first")
    if not (source / artifact.DESCRIPTION).is_file() and (source / "artifact" / artifact.DESCRIPTION).is_file():
        source = source / "artifact"  # the folder of a run
    described = artifact.describe(source)
    refuse(described.model, target)
    towers = artifact.load(source).towers
    golden = load_file(source / artifact.GOLDEN)
    staging = destination.with_name(destination.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        TARGETS[target].write(described.model, towers, staging)
        difference = compare(described.model, towers, staging, target, golden["images"], golden["tokens"])
        files = write_origin(staging, target, described)
        staging.replace(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Exported(target, str(destination), *difference, TARGETS[target].LOAD.format(folder=destination), files)


def refuse(config: ModelConfig, target: str) -> None:
    """Raise ValueError if the target cannot hold such a model; the message names the targets that can."""
    if config.dense:
        raise ValueError(
            "this model has a decoder for masks, and exports hold towers; export the artifact that its towers came from"
        )
    if reason := TARGETS[target].refusal(config):
        others = [name for name, other in TARGETS.items() if other.refusal(config) is None]
        raise ValueError(reason + (f"; this artifact can be exported --to {' or '.join(others)}" if others else ""))


def compare(
    config: ModelConfig, towers: Towers, folder: Path, target: str, image_BCHW: Tensor, tokens_NT: Tensor
) -> tuple[float, float | None]:
    """How far the folder's embeddings, computed by its library, are from the towers': images, texts.

    Raises:
        ValueError: further than the target allows.
    """
    theirs = TARGETS[target].embed(config, folder, image_BCHW, tokens_NT)
    with torch.inference_mode():
        image_BD = F.normalize(towers.visual(config.preprocess.normalise(image_BCHW)), dim=-1)
        text_ND = towers.encode_text(tokens_NT, normalize=True) if theirs[1] is not None else None
    differences = [
        None if own is None or found is None else float((own - found).abs().max())
        for own, found in zip((image_BD, text_ND), theirs, strict=True)
    ]
    for kind, difference in zip(("image", "text"), differences, strict=True):
        if difference is not None and not difference <= TARGETS[target].TOLERANCE:
            raise ValueError(
                f"{target} gives {kind} embeddings that are off by {difference:.2g}, more than {TARGETS[target].TOLERANCE:.0e}, "
                "so nothing was exported; please report this model's configuration"
            )
    assert differences[0] is not None
    return differences[0], differences[1]
