"""Training starts from somebody else's weights: an artifact's, an open_clip or a timm checkpoint, by name, folder or file.

A tower takes all of its weights or none: what the source lacks of a tower that it does fill is an error, never a random start,
and so is what it has too much (only a classifier is left out, or starts anew where the number of classes differs). Position
embeddings are interpolated by the library whose tower it is, where the grid or the context length differs. Only safetensors
files are read: a pickle from outside is never loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sightline.models import artifact
from sightline.models.interchange.origin import sha256 as sha256_of
from sightline.models.interchange.plain import uses_quick_gelu

CHOICES = (
    "give an artifact or run folder, a folder or a .safetensors file of open_clip or timm, an open_clip name such as "
    "ViT-B-32/laion2b_s34b_b79k, timm/NAME such as timm/vit_base_patch16_224.augreg_in1k, or hf-hub:ORGANISATION/REPOSITORY"
)
FOLDER_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights on this machine.

    Attributes:
        quick_gelu: whether its towers were trained with QuickGELU; None where that is not known.
        declared: the sha256 that the artifact declares; "" where nothing does.
    """

    path: Path
    quick_gelu: bool | None = None
    declared: str = ""


@dataclass(frozen=True)
class Loaded:
    """What became of a checkpoint.

    Attributes:
        digest: sha256 of the file.
        missing: parameters that the checkpoint does not have; they keep the values that they had.
        unexpected: tensors of the checkpoint that have no place in the model.
    """

    digest: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def find(source: str) -> Checkpoint:
    """The file behind a name, a folder or a file; a name is fetched into the library's own cache.

    Raises:
        ValueError: there is no such source, it is not in safetensors, or it cannot be fetched; the message names the choices.
    """
    path = Path(source).expanduser()
    if (path / "artifact" / artifact.DESCRIPTION).is_file():  # the folder of a run
        path = path / "artifact"
    if (path / artifact.DESCRIPTION).is_file():
        return Checkpoint(path / artifact.WEIGHTS, declared=artifact.describe(path).files[artifact.WEIGHTS])
    if path.is_dir():
        names = [name for name in FOLDER_FILES if (path / name).is_file()]
        if not names:
            raise ValueError(f"{source} has neither {' nor '.join(FOLDER_FILES)}; {CHOICES}")
        return Checkpoint(path / names[0], _quick_gelu(path / "open_clip_config.json"))
    if path.is_file():
        return _only_safetensors(path)
    try:
        return _fetched(source)
    except (OSError, RuntimeError, HfHubHTTPError) as error:
        raise ValueError(f"{source!r} cannot be fetched: {error}; {CHOICES}") from error


def load_into(model: nn.Module, source: str, sha256: str = "", image_only: bool = False) -> Loaded:
    """Copy a checkpoint's weights into towers or a classifier (`towers.build`), or into a timm model, in place.

    Args:
        sha256: the digest that the file must have, as a resolved run recorded it; "" for any.
        image_only: take no more than the image tower, and of a timm tower the trunk without the projection; the rest keeps its
            start. A classifier always takes the trunk alone.

    Raises:
        ValueError: there is no such source, it has another digest, or its weights do not fit the model.
    """
    checkpoint = find(source)
    digest = sha256_of(checkpoint.path)
    for wanted, by in ((sha256, "the run"), (checkpoint.declared, "its artifact")):
        if wanted and digest != wanted:
            raise ValueError(f"{checkpoint.path} is another file than {by} recorded: its sha256 is {digest}, not {wanted}")
    if checkpoint.quick_gelu is not None and checkpoint.quick_gelu != uses_quick_gelu(model):
        theirs, ours = ("QuickGELU", "GELU") if checkpoint.quick_gelu else ("GELU", "QuickGELU")
        raise ValueError(
            f"{source} was trained with {theirs} and this model computes {ours}; choose weights that fit, or set model.quick_gelu"
        )
    try:
        weights = {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(checkpoint.path).items()
        }
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{checkpoint.path} cannot be read as safetensors: {error}") from error
    of_towers = any(name.startswith("visual.") for name in weights)
    trunk = getattr(model.visual, "trunk", None) if hasattr(model, "visual") else model
    if isinstance(trunk, nn.Module) and (image_only or not of_towers or not hasattr(model, "text")):
        missing, unexpected = _into_timm(trunk, weights, source)
        if trunk is not model:
            missing = sorted(name for name in model.state_dict() if not name.startswith("visual.trunk."))
    elif of_towers:
        taken = {name: tensor for name, tensor in weights.items() if name.startswith("visual.") or not image_only}
        missing, unexpected = _into_towers(model, taken, source)
    else:
        raise ValueError(f"{source} is a timm checkpoint and the image tower is open_clip's own; set model.vision.timm_model_name")
    return Loaded(digest, tuple(missing), tuple(unexpected))


def load_text(model: nn.Module, source: str, sha256: str = "") -> None:
    """Copy the text tower of a dual encoder's checkpoint, and its temperature, in place.

    Raises:
        ValueError: there is no such source, it has another digest, or its text tower is another one.
    """
    path = find(source).path
    if sha256 and sha256_of(path) != sha256:
        raise ValueError(f"{path} is another file than the run recorded: its sha256 is not {sha256}")
    weights = convert_to_custom_text_state_dict(load_file(path))
    taken = {name: tensor.float() for name, tensor in weights.items() if name.startswith("text.")}
    if not taken:
        raise ValueError(f"{source} has no text tower; give a dual encoder, such as an artifact of clip_demo")
    if "logit_scale" in weights:
        taken["logit_scale"] = weights["logit_scale"].float().reshape(1)
    _copy(model, taken, source, ("text.",))


def _into_towers(model: nn.Module, weights: dict[str, Tensor], source: str) -> tuple[list[str], list[str]]:
    """An open_clip checkpoint (or an artifact of ours) into both towers."""
    weights = convert_to_custom_text_state_dict(weights)
    own = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in weights and name in own:
            weights[name] = weights[name].reshape(own[name].shape)
    resize_pos_embed(weights, model)
    positions = "text.positional_embedding"
    if positions in own and positions in weights and own[positions].shape[1] == weights[positions].shape[1]:
        resize_text_pos_embed(weights, model)
    trunk = getattr(model.visual, "trunk", None)
    if trunk is not None and any(name.startswith("visual.trunk.") for name in weights):
        inside = {
            name.removeprefix("visual.trunk."): weights.pop(name) for name in list(weights) if name.startswith("visual.trunk.")
        }
        weights |= {f"visual.trunk.{name}": tensor for name, tensor in _adapted(trunk, inside).items()}
    return _copy(model, weights, source, ("visual.", "text."))


def _into_timm(model: nn.Module, weights: dict[str, Tensor], source: str) -> tuple[list[str], list[str]]:
    """A checkpoint of timm, or the image tower of one of open_clip, into a timm model (or a trunk without its classifier)."""
    inside = {name.removeprefix("visual.trunk."): tensor for name, tensor in weights.items() if name.startswith("visual.trunk.")}
    found = _adapted(model, dict(inside or weights))
    own = model.state_dict()
    classifier = {f"{layer}.{kind}" for layer in _classifiers(model) for kind in ("weight", "bias")}
    left_out = {name for name in classifier & found.keys() if name not in own or found[name].shape != own[name].shape}
    missing, unexpected = _copy(
        model, {name: tensor for name, tensor in found.items() if name not in left_out}, source, ("",), classifier
    )
    beside = {name for name in weights if inside and not name.startswith("visual.trunk.")}  # the other tower, the projection
    return missing, sorted({*unexpected, *left_out, *beside})


def _copy(
    model: nn.Module, weights: Mapping[str, Tensor], source: str, towers: tuple[str, ...], optional: Set[str] = frozenset()
) -> tuple[list[str], list[str]]:
    """Copy what has the same name; a tower (a prefix) of which the source has anything must be the same tower altogether."""
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    for name in sorted(own.keys() & weights.keys()):
        if weights[name].shape != own[name].shape:
            raise ValueError(
                f"{source} does not fit this model: {name} is {list(weights[name].shape)} there and {list(own[name].shape)} here"
            )
    for tower in towers:
        lacking = [name for name in missing if name.startswith(tower) and name not in optional]
        # A count that batch norms keep for themselves; frozen ones have none.
        beyond = [name for name in unexpected if name.startswith(tower) and not name.endswith("num_batches_tracked")]
        if any(name.startswith(tower) for name in weights):
            for names, what in ((lacking, "lacks"), (beyond, "also has")):
                if names:
                    raise ValueError(f"{source} does not fit this model: it {what} {', '.join(names[:3])} (of {len(names)})")
    model.load_state_dict({name: weights[name] for name in own.keys() & weights.keys()}, strict=False)
    return missing, unexpected


def _adapted(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's own reader of other names and other resolutions, which each family of models keeps beside its class."""
    read = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    with torch.no_grad():
        return weights if read is None else read(weights, model)


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Names of the classifier layers, as timm's configuration gives them."""
    named = getattr(model, "default_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _fetched(source: str) -> Checkpoint:
    if source.startswith("hf-hub:"):
        repository = source.removeprefix("hf-hub:")
        config = hf_hub_download(repository, "open_clip_config.json")
        return _only_safetensors(Path(download_pretrained_from_hf(repository)), _quick_gelu(Path(config)))
    if source.startswith("timm/"):
        name = source.removeprefix("timm/")
        architecture, _, tag = name.partition(".")
        known = timm.list_pretrained(f"{architecture}.*")
        if not known or (tag and name not in known):
            raise ValueError(
                f"timm has no weights {name!r}, but {', '.join(known)}" if known else f"timm has no {name!r}; {CHOICES}"
            )
        repository = timm.get_pretrained_cfg(name).hf_hub_id
        return Checkpoint(Path(hf_hub_download(repository, "model.safetensors")))
    architecture, _, tag = source.partition("/")
    pretrained = get_pretrained_cfg(architecture, tag) if tag else {}
    if pretrained:
        return _only_safetensors(Path(download_pretrained(pretrained)), bool(pretrained.get("quick_gelu", False)))
    if tags := open_clip.list_pretrained_tags_by_model(architecture):
        raise ValueError(f"open_clip has {architecture} with the weights {', '.join(tags)}; name them as {architecture}/{tags[0]}")
    raise ValueError(f"there are no weights {source!r}; {CHOICES}")


def _only_safetensors(path: Path, quick_gelu: bool | None = None) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise ValueError(
            f"{path} is no .safetensors file, and a pickle from outside is never loaded; "
            "convert it with safetensors.torch.save_file where you trust it"
        )
    return Checkpoint(path, quick_gelu)


def _quick_gelu(config: Path) -> bool | None:
    """What an open_clip configuration says about its activation; None where there is none."""
    if not config.is_file():
        return None
    try:
        return bool(json.loads(config.read_text())["model_cfg"].get("quick_gelu", False))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{config} is no open_clip configuration: {error!r}") from error
