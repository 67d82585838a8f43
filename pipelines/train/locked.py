"""What towers start from; and a locked image tower (LiT, Zhai et al. 2022) never changes, so each image goes through it once and
the features are kept.

Training then sees features [F] where it would see pixels: the trunk is taken out of the towers, an identity stands in
its place, and the artifact gets the trunk back. Images are preprocessed as in evaluation (augmentation would need new
features every epoch).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightline.models.artifact import DESCRIPTION, describe
from sightline.models.codec import decode_rgb
from sightline.models.interchange.load_weights import find, load_into
from sightline.models.losses import Share
from sightline.models.towers import ModelConfig, Towers, build
from sightline.pipelines.corpus.reader import Corpus

BATCH = 32


def detach_trunk(towers: Towers, config: ModelConfig) -> nn.Module | None:
    """Load the pretrained weights, if there are any; if the trunk is locked, take it out of the towers and return it.

    Raises:
        ValueError: a checkpoint does not fit the towers, or an image tower without a timm trunk is to be locked.
    """
    trunk: nn.Module | None = getattr(towers.visual, "trunk", None)
    if config.pretrained:
        lacking = load_into(towers, config.pretrained, config.pretrained_sha256).missing
        if any(name.startswith("text.") for name in lacking):
            raise ValueError(f"{config.pretrained} has no text tower; give it as model.pretrained_image")
    if config.pretrained_image:
        load_into(towers if trunk is None else trunk, config.pretrained_image, config.pretrained_image_sha256, image_only=True)
        if config.is_classifier:
            load_head(towers, config)
    if not config.lock_image:
        return None
    if trunk is None:
        raise ValueError("model.lock_image needs a timm image tower; set model.vision.timm_model_name")
    towers.visual.trunk = nn.Identity()
    return trunk.eval().requires_grad_(False)


def count_parameters(config: ModelConfig) -> int:
    """How many parameters the workers hold, without making any: all but a locked trunk's."""
    with torch.device("meta"):
        towers = build(config)
    if config.lock_image and hasattr(towers.visual, "trunk"):
        towers.visual.trunk = nn.Identity()
    return sum(parameter.numel() for parameter in towers.parameters())


def load_head(towers: Towers, config: ModelConfig) -> None:
    """Take over a classifier's head if it is one for the same classes; another head starts anew."""
    path = find(config.pretrained_image).path
    if (path.parent / DESCRIPTION).is_file() and describe(path.parent).model.classes == config.classes:
        own, theirs = (
            {name: tensor for name, tensor in weights.items() if name.startswith("visual.head.")}
            for weights in (towers.state_dict(), load_file(path))
        )
        if {name: tensor.shape for name, tensor in own.items()} == {name: tensor.shape for name, tensor in theirs.items()}:
            towers.load_state_dict(theirs, strict=False)


def features(
    trunk: nn.Module, corpus: Corpus, rows: NDArray[np.int64], config: ModelConfig, run_dir: Path, device: torch.device
) -> dict[int, Tensor]:
    """Row → the trunk's pooled features [F] float32; computed by all ranks together once, then read from the run's folder."""
    name = hashlib.sha256(
        f"{corpus.root}/{config.pretrained_image_sha256 or config.pretrained_sha256}/{config.preprocess}/{config.vision}".encode()
    ).hexdigest()[:12]
    path = run_dir / f"features-{name}.safetensors"
    if not path.is_file():
        _compute(trunk.to(device), corpus, rows, config, path, device)
    stored = load_file(path)
    return dict(zip(stored["rows"].tolist(), stored["features"], strict=True))


def _compute(
    trunk: nn.Module, corpus: Corpus, rows: NDArray[np.int64], config: ModelConfig, path: Path, device: torch.device
) -> None:
    share = Share.of(len(rows), dist.group.WORLD)
    own = rows[share.own]
    found = []
    with torch.inference_mode():
        for part in np.array_split(own, max(1, len(own) // BATCH)):
            pixels = torch.stack(
                [config.preprocess.pixels(decode_rgb(corpus.image(int(row)), max_pixels=corpus.max_pixels)) for row in part]
            )
            found.append(trunk(config.preprocess.normalise(pixels.to(device))).float())
    every = share.gather(torch.cat(found).clone()).cpu()
    if share.rank == 0:
        temporary = path.with_suffix(".tmp")
        save_file({"rows": torch.from_numpy(rows), "features": every}, temporary)
        temporary.replace(path)
    dist.barrier()
