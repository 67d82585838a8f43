"""One name, one model: an artifact of ours, a local open_clip folder, or one of open_clip's pretrained models.

A folder that `sightline export --to open_clip` wrote keeps its artifact's name, prompt templates and classes, as long as the files
are those that were exported.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import open_clip
from safetensors.torch import save

from sightline.models import artifact
from sightline.models.clip import Clip
from sightline.models.interchange.origin import origin
from sightline.models.preprocess import Preprocess
from sightline.models.towers import Towers
from sightline.models.zeroshot import PHOTO_TEMPLATES

CHOICES = (
    "give an artifact folder (written by `sightline train`), a folder with open_clip_config.json, an open_clip name such as "
    "ViT-B-32/laion2b_s34b_b79k, or hf-hub:ORGANISATION/REPOSITORY"
)


def load_model(name: str, device: str = "cpu") -> Clip:
    """The model of that name, ready for use; an artifact proves its digests and golden embeddings first.

    Raises:
        ValueError: there is no such model, or it does not prove itself; the message names the choices.
    """
    folder = Path(name)
    if (folder / artifact.DESCRIPTION).is_file():
        return artifact.load(folder, device)
    if (folder / "artifact" / artifact.DESCRIPTION).is_file():  # the folder of a run
        return artifact.load(folder / "artifact", device)
    if (folder / "open_clip_config.json").is_file():
        return _as_exported(_open_clip(f"local-dir:{folder.resolve()}", None, folder.name, device), folder)
    if folder.exists():
        raise ValueError(f"{name} is no model: it has neither {artifact.DESCRIPTION} nor open_clip_config.json; {CHOICES}")
    if name.startswith("hf-hub:"):
        return _open_clip(name, None, name.removeprefix("hf-hub:"), device)
    architecture, _, tag = name.partition("/")
    if (architecture, tag) in {tuple(pair) for pair in open_clip.list_pretrained()}:
        return _open_clip(architecture, tag, name, device)
    if tags := open_clip.list_pretrained_tags_by_model(architecture):
        raise ValueError(f"open_clip has {architecture} with the weights {', '.join(tags)}; name them as {architecture}/{tags[0]}")
    raise ValueError(f"there is no model {name!r}; {CHOICES}")


def _open_clip(identifier: str, tag: str | None, name: str, device: str) -> Clip:
    try:
        towers = open_clip.create_model(identifier, pretrained=tag, device=device, require_pretrained=True)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"open_clip cannot load {name!r}: {error}; {CHOICES}") from error
    wanted = open_clip.get_model_preprocess_cfg(towers)
    size = wanted["size"] if isinstance(wanted["size"], int) else wanted["size"][0]
    resize = wanted.get("resize_mode", "shortest")
    if resize not in ("shortest", "squash"):
        raise ValueError(f"{name!r} wants its images resized by {resize!r}; only 'shortest' and 'squash' are supported")
    towers = towers.eval().requires_grad_(False)
    tokenizer = open_clip.get_tokenizer(identifier)
    return Clip(
        towers=towers,
        preprocess=Preprocess(size=size, mean=tuple(wanted["mean"]), std=tuple(wanted["std"]), resize=resize),
        tokenizer=lambda texts: tokenizer(texts),
        name=name,
        revision=_digest(towers),
        templates=PHOTO_TEMPLATES,
    )


def _as_exported(model: Clip, folder: Path) -> Clip:
    """With what the artifact said beyond open_clip's own configuration, if the folder still holds what was exported."""
    exported = origin(folder)
    if exported is None:
        return model
    return replace(
        model, name=exported["name"], templates=tuple(exported["model"]["templates"]), classes=tuple(exported["classes"])
    )


def _digest(towers: Towers) -> str:
    """sha256 of all weights, however they were stored."""
    digest = hashlib.sha256()
    for key, tensor in sorted(towers.state_dict().items()):
        digest.update(key.encode() + save({"": tensor.cpu().contiguous()}))
    return digest.hexdigest()
