"""What the image tower computes with, and the proof that it still gives the trained model's embeddings.

bfloat16 is twice to four times as fast as float32 where the processor has instructions for it (avx512_bf16, AMX, any recent GPU),
and slower where it has not. `auto` takes it where it pays and the golden embeddings allow it; whatever is taken, and the
difference that was measured, stands in /v1/models. Weights are converted once: autocast would convert them at every call. A large
tower in float32 is computed by onnxruntime on a CPU (`traced.py`).

The golden embeddings are the artifact's. A model that has none is its own reference, in float32.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.models.artifact import golden_images
from sightline.models.clip import Clip
from sightline.serve.traced import pays, traced

Precision = Literal["auto", "float32", "bfloat16"]
# 1 − cosine of a served embedding and its golden one.
MAX_DIFFERENCE = 1e-3
CPU_FLAGS = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class ImageTower:
    """A model for its images alone.

    Attributes:
        difference: largest 1 − cosine from the golden embeddings.
        runtime: what computes it, `torch` or `onnxruntime`.
    """

    model: Clip
    precision: str
    difference: float
    runtime: str = "torch"


def image_tower(model: Clip, precision: Precision, golden: tuple[Tensor, Tensor] | None = None) -> ImageTower:
    """The model's image tower in that precision.

    Args:
        golden: images and embeddings of the artifact, where it is one.

    Raises:
        ValueError: the embeddings differ too much.
    """
    images, want = golden or (golden_images(model.preprocess.size), None)
    if want is None:
        want = model.embed_images(images).cpu()
    if precision == "auto":
        fast = ImageTower(in_bfloat16(model), "bfloat16", 0.0) if has_bfloat16(model.device) else None
        if fast is not None and (difference := cosine_difference(fast.model, images, want)) <= MAX_DIFFERENCE:
            return replace(fast, difference=difference)
        precision = "float32"
    by_graph = precision == "float32" and pays(model)
    tower = in_bfloat16(model) if precision == "bfloat16" else traced(model) if by_graph else model
    difference = cosine_difference(tower, images, want)
    if not difference <= MAX_DIFFERENCE:
        remedy = "serve it in float32" if precision == "bfloat16" else "check the versions of torch and open_clip"
        off = f"off by {difference:.1e} in cosine ({MAX_DIFFERENCE:.0e} is allowed)"
        raise ValueError(f"embeddings of {model.name} in {precision} are {off}; {remedy}")
    return ImageTower(tower, precision, difference, "onnxruntime" if by_graph else "torch")


def cosine_difference(model: Clip, images: Tensor, want_BD: Tensor) -> float:
    got_BD = model.embed_images(images).cpu()
    return max(0.0, float((1 - F.cosine_similarity(got_BD, want_BD, dim=-1)).max()))


def in_bfloat16(model: Clip) -> Clip:
    """The same model with a converted copy of its image tower; inputs are converted on their way in."""
    visual: nn.Module = copy.deepcopy(model.towers.visual).to(torch.bfloat16)
    visual.register_forward_pre_hook(to_bfloat16)
    towers = copy.copy(model.towers)
    towers._modules = dict(towers._modules)  # a module of its own, with the same text tower
    towers.visual = visual
    return replace(model, towers=towers)


def to_bfloat16(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(one.to(torch.bfloat16) if isinstance(one, Tensor) else one for one in inputs)


def has_bfloat16(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether bfloat16 is fast there; not where nobody can tell."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not cpuinfo.is_file():
        return False
    flags = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
    return any(flag in flags.split() for flag in CPU_FLAGS)
