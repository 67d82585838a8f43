"""The image tower as an ONNX graph: the same float32 arithmetic by onnxruntime, whose kernels on CPUs are often faster.

By how much, `benchmarks/serving_engines.py` says. Small towers stay with torch, as tracing takes seconds and they are not what a
request waits for; so does everything where the packages are not there (`pip install "sightline[onnx]"`).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.models.clip import Clip
from sightline.models.interchange.extras import need
from sightline.models.interchange.onnx import ImageEncoder, trace

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LEAST_PARAMETERS = 20_000_000


@dataclass(frozen=True)
class TracedClip(Clip):
    """A model whose images go through onnxruntime; its texts go through torch."""

    session: Any = None

    def embed_images(self, image_BCHW: Tensor) -> Tensor:
        """Unit image embeddings [B, D] float32 of uint8 pixels [B, 3, size, size]."""
        return torch.from_numpy(np.asarray(self.session.run(None, {"pixels": image_BCHW.numpy()})[0]))


def pays(model: Clip) -> bool:
    """Whether tracing can be had, and is worth its seconds."""
    parameters = sum(parameter.numel() for parameter in model.towers.visual.parameters())
    return model.device.type == "cpu" and parameters >= LEAST_PARAMETERS and all(find_spec(name) for name in PACKAGES)


def traced(model: Clip) -> TracedClip:
    """The model with its image tower in a graph, in which one thread takes a call: who calls has threads of its own."""
    onnxruntime = need("onnxruntime", "onnx")
    size = model.preprocess.size
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "image.onnx"
        trace(ImageEncoder(model.towers.visual, model.preprocess), torch.zeros(2, 3, size, size, dtype=torch.uint8), "pixels", path)
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return TracedClip(**{field.name: getattr(model, field.name) for field in fields(Clip)}, session=session)
