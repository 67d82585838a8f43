"""What towers start from; and a locked image tower (LiT, Zhai et al. 2022) never changes, so each image goes through it once and
the features are kept.

Training then sees features [F] where it would see pixels: the trunk is taken out of the towers, an identity stands in
its place, and the artifact gets the trunk back. Images are preprocessed as in evaluation (augmentation would need new
features every epoch).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sightline.models.artifact import DESCRIPTION, describe
from sightline.models.codec import decode_rgb
from sightline.models.interchange.load_weights import find, load_into, load_text
from sightline.models.losses import Share
from sightline.models.lseg import DenseHead, taps
from sightline.models.preprocess import resample, to_CHW
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig, Towers, build
from sightline.models.zeroshot import fill
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
        if config.is_classifier or (config.dense and config.dense.image_embedding == "tower"):
            load_head(towers, config)
    if not config.lock_image:
        return None
    if trunk is None:
        raise ValueError("model.lock_image needs a timm image tower; set model.vision.timm_model_name")
    trunk = trunk.eval().requires_grad_(False)
    if not config.keeps_features:
        return None
    towers.visual.trunk = nn.Identity()
    return trunk


def count_parameters(config: ModelConfig) -> int:
    """How many parameters the workers hold, without making any: all but a locked trunk's, and a dense head's text tower."""
    with torch.device("meta"):
        towers = build(config)
    if config.keeps_features and hasattr(towers.visual, "trunk"):
        towers.visual.trunk = nn.Identity()
    if config.dense:
        towers.text = nn.Identity()
    return sum(parameter.numel() for parameter in towers.parameters())


def detach_text(towers: Towers, config: ModelConfig, texts: Sequence[str]) -> nn.Module | None:
    """Of a model with a dense head: take the frozen text tower out of the towers and return it; what training needs of it is the
    embeddings of its labels and words, which stay as `label_KD`.

    Raises:
        ValueError: the source of its weights does not fit, or two names mean the same to it.
    """
    if not config.dense:
        return None
    if config.pretrained_text:
        load_text(towers, config.pretrained_text, config.pretrained_text_sha256)
    tokenizer = get_tokenizer(config.tokenizer, config.context_length)
    text = towers.text.eval().requires_grad_(False)
    with torch.no_grad():
        tokens = tokenizer(fill(texts, config.templates))
        label_KD = F.normalize(F.normalize(text(tokens).float(), dim=-1).unflatten(0, (len(texts), -1)).mean(1), dim=-1)
    same = ((label_KD @ label_KD.T).fill_diagonal_(-1) > 1 - 1e-6).nonzero().tolist()
    if same or not label_KD.isfinite().all():
        names = " and ".join(repr(texts[i]) for i in (same[0] if same else [0]))
        raise ValueError(
            f"{names} have the same embedding or none; give other names in classes.csv, or another model.pretrained_text"
        )
    towers.register_buffer("label_KD", label_KD, persistent=False)
    towers.text = nn.Identity()
    return text


def load_head(towers: Towers, config: ModelConfig) -> None:
    """Take over an artifact's projection, or a classifier's head if it is one for the same classes; another head starts anew."""
    path = find(config.pretrained_image).path
    if (path.parent / DESCRIPTION).is_file() and (config.dense or describe(path.parent).model.classes == config.classes):
        own, theirs = (
            {name: tensor for name, tensor in weights.items() if name.startswith("visual.head.")}
            for weights in (towers.state_dict(), load_file(path))
        )
        if {name: tensor.shape for name, tensor in own.items()} == {name: tensor.shape for name, tensor in theirs.items()}:
            towers.load_state_dict(theirs, strict=False)


def features(
    trunk: nn.Module,
    corpus: Corpus,
    rows: NDArray[np.int64],
    config: ModelConfig,
    run_dir: Path,
    device: torch.device,
    *,
    mirrored: bool = False,
) -> dict[int, Tensor]:
    """Row → what the trunk makes of it, float32; computed by all ranks together once, then read from the run's folder.

    Its pooled features [F]; for a dense head its taps [1, C, h, w], or with the mirrored image's [2, C, h, w].
    """
    weights, dense = (
        config.pretrained_image_sha256 or config.pretrained_sha256,
        f"/{config.dense}/{mirrored}" if config.dense else "",
    )
    name = hashlib.sha256(f"{corpus.root}/{weights}/{config.preprocess}/{config.vision}{dense}".encode()).hexdigest()[:12]
    path = run_dir / f"features-{name}.safetensors"

    def pooled(row: int) -> Tensor:
        return config.preprocess.pixels(decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels))

    def squeezed(row: int) -> Tensor:
        size = config.preprocess.size
        return resample(to_CHW(decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels)), size, size)

    def maps(head: DenseHead, image_BCHW: Tensor) -> Tensor:
        ways = [image_BCHW, image_BCHW.flip(-1)] if mirrored else [image_BCHW]
        return torch.stack([torch.cat(taps(trunk, way, head.taps), dim=1) for way in ways], dim=1)

    there = [path.is_file()]
    dist.broadcast_object_list(there, src=0)  # one answer for all ranks, also where a network file system lags
    if not there[0]:
        head = config.dense
        encode = partial(maps, head) if head else trunk
        trunk.to(device)
        _compute(encode, squeezed if head else pooled, rows, config, path, device)
    stored = load_file(path)
    return dict(zip(stored["rows"].tolist(), stored["features"], strict=True))


def _compute(
    encode: Callable[[Tensor], Tensor],
    pixels_of: Callable[[int], Tensor],
    rows: NDArray[np.int64],
    config: ModelConfig,
    path: Path,
    device: torch.device,
) -> None:
    share = Share.of(len(rows), dist.group.WORLD)
    own = rows[share.own]
    found = []
    with torch.inference_mode():
        for part in np.array_split(own, max(1, len(own) // BATCH)):
            pixels = torch.stack([pixels_of(int(row)) for row in part])
            found.append(encode(config.preprocess.normalise(pixels.to(device))).float())
    every = share.gather(torch.cat(found).clone()).cpu()
    if share.rank == 0:
        temporary = path.with_suffix(".tmp")
        save_file({"rows": torch.from_numpy(rows), "features": every.contiguous()}, temporary)
        temporary.replace(path)
    dist.barrier()
