"""An artifact is the only thing that leaves training: a folder that holds all that evaluation and serving need, and proves itself.

    artifact.json          configuration, preprocessing, tokenizer, classes, provenance, and the sha256 of the files below
    weights.safetensors    the towers
    golden.safetensors     images, tokens and the embeddings that the trained model gave them

Loading re-hashes the files, rebuilds the towers, and recomputes the golden embeddings on the machine that will answer:
a replica whose numbers differ takes no traffic. `artifact.json` is written last, and the folder appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from sightline.models.clip import Clip
from sightline.models.preprocess import Preprocess
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig, Towers, build

FORMAT = "sightline-artifact/1"
DESCRIPTION, WEIGHTS, GOLDEN = "artifact.json", "weights.safetensors", "golden.safetensors"
# Largest difference in any component of a unit embedding: another CPU's fp32 kernels differ by about 1e-6, bf16 by about 1e-2.
GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Artifact:
    """What `artifact.json` says.

    Attributes:
        classes: names of the corpus's classes, which zero-shot evaluation and the contrast of the dense readout use.
        provenance: corpus root, resolved run and its id, steps, final loss, versions.
        files: sha256 of each other file.
    """

    name: str
    model: ModelConfig
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    format: str = FORMAT


def write(
    folder: Path,
    artifact: Artifact,
    weights: Mapping[str, Tensor],
    golden_texts: Sequence[str],
) -> None:
    """Write the artifact at `folder`, which must not exist; an interrupted call leaves nothing there."""
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, staging / WEIGHTS)
    towers = _towers(artifact.model, staging / WEIGHTS)
    image_B3SS = golden_images(artifact.model.preprocess.size)
    tokens_NT = get_tokenizer(artifact.model.tokenizer, artifact.model.context_length)(list(golden_texts))
    image_BD, text_ND = _golden_embeddings(towers, artifact.model.preprocess, image_B3SS, tokens_NT)
    save_file(
        {"images": image_B3SS, "tokens": tokens_NT, "image_embeddings": image_BD, "text_embeddings": text_ND},
        staging / GOLDEN,
    )
    files = {name: _sha256(staging / name) for name in (WEIGHTS, GOLDEN)}
    described = asdict(artifact) | {"files": files}
    (staging / DESCRIPTION).write_text(json.dumps(described, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for path in (*staging.iterdir(), staging):  # on disk before it has its name
        _sync(path)
    staging.replace(folder)
    _sync(folder.parent)


def describe(folder: Path) -> Artifact:
    """Read `artifact.json`.

    Raises:
        FileNotFoundError: the folder is no artifact.
        ValueError: it was written by another format version, or is damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no artifact: it has no {DESCRIPTION}; `sightline train` writes one")
    try:
        fields = json.loads(path.read_text())
        if fields["format"] != FORMAT:
            raise ValueError(f"{folder} has format {fields['format']!r}; this version reads {FORMAT!r}")
        model = fields["model"]
        preprocess = model.pop("preprocess")
        for name in ("mean", "std"):
            preprocess[name] = tuple(preprocess[name])
        model["templates"] = tuple(model["templates"])
        config = ModelConfig(preprocess=Preprocess(**preprocess), **model)
        return Artifact(**(fields | {"model": config, "classes": tuple(fields["classes"])}))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); train again or copy the artifact again") from error


def load(folder: Path, device: str = "cpu") -> Clip:
    """The model of an artifact, after its digests and its golden embeddings were checked.

    Raises:
        FileNotFoundError: the folder is no artifact.
        ValueError: a file does not have its digest, or the golden embeddings differ on this machine.
    """
    artifact = describe(folder)
    for name, digest in artifact.files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is damaged or missing: its sha256 is not {digest}; copy the artifact again")
    towers = _towers(artifact.model, folder / WEIGHTS).to(device)
    golden = load_file(folder / GOLDEN)
    found = _golden_embeddings(towers, artifact.model.preprocess, golden["images"], golden["tokens"])
    for kind, embedding in zip(("image_embeddings", "text_embeddings"), found, strict=True):
        difference = float((embedding - golden[kind]).abs().max())
        if not difference <= GOLDEN_TOLERANCE:
            raise ValueError(
                f"golden embeddings differ: {kind} of {folder} are off by {difference:.2g} on this machine "
                f"(at most {GOLDEN_TOLERANCE:.0e} is allowed); check the versions in {DESCRIPTION}"
            )
    return Clip(
        towers=towers,
        preprocess=artifact.model.preprocess,
        tokenizer=get_tokenizer(artifact.model.tokenizer, artifact.model.context_length),
        name=artifact.name,
        revision=artifact.files[WEIGHTS],
        templates=artifact.model.templates,
        classes=artifact.classes,
    )


def golden_images(size: int, count: int = 4) -> Tensor:
    """uint8 test images [count, 3, size, size]: smooth noise at several scales, the same on every machine."""
    random = torch.Generator().manual_seed(0)
    coarse = [torch.randint(0, 256, (1, 3, 2 ** (i + 1), 2 ** (i + 1)), generator=random) for i in range(count)]
    return torch.cat([F.interpolate(noise.to(torch.uint8), size=(size, size), mode="nearest") for noise in coarse])


def _towers(config: ModelConfig, weights: Path) -> Towers:
    with torch.random.fork_rng(devices=[]):
        towers = build(config)
    towers.load_state_dict(load_file(weights))
    return towers.eval().requires_grad_(False)


def _golden_embeddings(towers: Towers, preprocess: Preprocess, image_B3SS: Tensor, tokens_NT: Tensor) -> tuple[Tensor, Tensor]:
    device = next(towers.parameters()).device
    with torch.inference_mode():
        image_BD = towers.encode_image(preprocess.normalise(image_B3SS.to(device)))
        text_ND = towers.encode_text(tokens_NT.to(device))
    return F.normalize(image_BD.float(), dim=-1).cpu(), F.normalize(text_ND.float(), dim=-1).cpu()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
