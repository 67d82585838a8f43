"""An artifact is the only thing that leaves training: a folder that holds all that evaluation and serving need, and proves itself.

    artifact.json          configuration, preprocessing, tokenizer, classes, provenance, and the sha256 of the files below
    weights.safetensors    the towers
    golden.safetensors     images, tokens and the embeddings that the trained model gave them (a classifier: logits, a predictor:
                           losses); a file and texts with what each stage before the towers made of them (golden.py)

Loading re-hashes the files, rebuilds the model, and recomputes the golden outputs on the machine that will answer:
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

from sightline.models.classifier import TrainedClassifier
from sightline.models.clip import Clip
from sightline.models.golden import check_inputs, inputs, other_versions
from sightline.models.lseg import DenseHead, Lseg
from sightline.models.predictive import Predictor, TrainedPredictor
from sightline.models.preprocess import Preprocess
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig, Towers, build

FORMAT = "sightline-artifact/1"
DESCRIPTION, WEIGHTS, GOLDEN = "artifact.json", "weights.safetensors", "golden.safetensors"
# Largest difference in any component of a unit vector (an embedding, or an image's logits): another CPU's fp32 kernels differ by
# about 1e-6, bf16 by about 1e-2.
GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Artifact:
    """What `artifact.json` says.

    Attributes:
        classes: names of the corpus's classes, which zero-shot evaluation and the contrast of the dense readout use; what a
            classifier's logits stand for.
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
    golden = {"images": golden_images(artifact.model.preprocess.size)}
    if not artifact.model.is_classifier:
        golden["tokens"] = get_tokenizer(artifact.model.tokenizer, artifact.model.context_length)(list(golden_texts))
        golden |= inputs(artifact.model.preprocess, golden_texts)
    outputs = _golden_outputs(_towers(artifact.model, staging / WEIGHTS), artifact.model.preprocess, golden)
    save_file(golden | outputs, staging / GOLDEN)
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
        model["templates"], model["classes"] = tuple(model["templates"]), tuple(model.get("classes", ()))
        if head := model.get("dense"):
            model["dense"] = DenseHead(**(head | {name: tuple(head[name]) for name in ("taps", "widths")}))
        config = ModelConfig(preprocess=Preprocess(**preprocess), **model)
        return Artifact(**(fields | {"model": config, "classes": tuple(fields["classes"])}))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}); train again or copy the artifact again") from error


def find(name: str) -> Path | None:
    """The artifact of that path, or of the run there; None where there is neither."""
    return next((folder for folder in (Path(name), Path(name) / "artifact") if (folder / DESCRIPTION).is_file()), None)


Ready = Clip | TrainedClassifier | TrainedPredictor


def load(folder: Path, device: str = "cpu") -> Clip:
    """The dual encoder of an artifact, after its digests and its golden embeddings were checked.

    Raises:
        FileNotFoundError: the folder is no artifact.
        ValueError: it is no dual encoder's, a file does not have its digest, or the golden embeddings differ on this machine.
    """
    loaded = load_any(folder, device)
    if not isinstance(loaded, Clip):
        what = "predicts captions" if isinstance(loaded, TrainedPredictor) else f"is a classifier of {len(loaded.classes)} classes"
        raise ValueError(
            f"{folder} {what} and has no embeddings of texts; `sightline evaluate` scores it, and whatever needs them takes an "
            "artifact of a recipe such as clip_small"
        )
    return loaded


def load_any(folder: Path, device: str = "cpu") -> Ready:
    """The model of an artifact, whichever it is, after its digests and its golden outputs were checked.

    Raises:
        FileNotFoundError: the folder is no artifact.
        ValueError: a file does not have its digest, or the golden outputs differ on this machine.
    """
    artifact = describe(folder)
    for name, digest in artifact.files.items():
        if not (folder / name).is_file() or _sha256(folder / name) != digest:
            raise ValueError(f"{folder / name} is damaged or missing: its sha256 is not {digest}; copy the artifact again")
    golden, others = load_file(folder / GOLDEN), other_versions(artifact.provenance.get("versions", {}))
    if not artifact.model.is_classifier:
        try:
            check_inputs(golden, artifact.model.preprocess, get_tokenizer(artifact.model.tokenizer, artifact.model.context_length))
        except ValueError as error:
            raise ValueError(f"golden inputs of {folder} differ: {error}") from None
    towers = _towers(artifact.model, folder / WEIGHTS).to(device)
    for kind, output in _golden_outputs(towers, artifact.model.preprocess, golden).items():
        difference = float((output - golden[kind]).abs().max())
        if not difference <= GOLDEN_TOLERANCE:
            raise ValueError(
                f"golden embeddings differ: {kind} of {folder} are off by {difference:.2g} on this machine "
                f"(at most {GOLDEN_TOLERANCE:.0e} is allowed), though weights and inputs are as they were; "
                + (f"a library differs: {others}" if others else f"check the tower's configuration, mean and std in {DESCRIPTION}")
            )
    return ready(artifact.model, towers, artifact.name, artifact.files[WEIGHTS], artifact.classes)


def ready(config: ModelConfig, towers: Towers, name: str, revision: str, classes: tuple[str, ...]) -> Ready:
    """Weights in evaluation mode, with all that using them takes."""
    if config.is_classifier:
        return TrainedClassifier(towers, config.preprocess, name, revision, classes)
    tokenizer = get_tokenizer(config.tokenizer, config.context_length)
    kind = TrainedPredictor if config.is_predictor else Clip
    return kind(towers, config.preprocess, tokenizer, name, revision, config.templates, classes)


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


def _golden_outputs(towers: Towers, preprocess: Preprocess, golden: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unit vectors in float32 of the golden images and, where there are any, tokens."""
    device = next(towers.parameters()).device
    with torch.inference_mode():
        images = preprocess.normalise(golden["images"].to(device))
        if isinstance(towers, Predictor):
            texts = golden["tokens"].to(device)
            found = {"losses": torch.stack([towers(images, text.expand(len(images), -1)) for text in texts], dim=1)}
        elif "tokens" in golden:
            found = {
                "image_embeddings": towers.encode_image(images),
                "text_embeddings": towers.encode_text(golden["tokens"].to(device)),
            }
            if isinstance(towers, Lseg):
                found["place_embeddings"] = towers(images).mean((2, 3))
        else:
            found = {"logits": towers(images)}
    return {name: F.normalize(output.float(), dim=-1).cpu() for name, output in found.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
