"""A real but tiny open_clip model with random weights, and its service without Ray."""

from __future__ import annotations

import io
import json
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from starlette.testclient import TestClient

from sightline.models.clip import Clip
from sightline.models.load import load_model
from sightline.serve.http import build
from sightline.serve.limits import Limits
from sightline.serve.served import Served
from sightline.serve.service import Service

SIZE = 64
CONFIG = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28], "interpolation": "bicubic"},
}
# Small enough to be reached by a test.
LIMITS = Limits(
    max_body_bytes=400_000,
    max_image_bytes=200_000,
    max_pixels=250_000,
    max_labels=20,
    max_prompts=40,
    max_images=6,
    max_score_maps=8,
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `open_clip.push_to_hf_hub` would write of such a model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        towers = open_clip.CLIP(**CONFIG["model_cfg"])
        for parameter in towers.visual.parameters():
            parameter.data.mul_(3)  # at initial scale all images look alike to a random tower
    save_file(towers.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> Clip:
    return load_model(str(model_folder))


@pytest.fixture(scope="session")
def served(model: Clip) -> Served:
    return Served.of(model)


@pytest.fixture
def service(model: Clip) -> Service:
    return Service(Served.of(model), LIMITS)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """The app as a client sees it; our own failures come back as responses."""
    with TestClient(build(service), raise_server_exceptions=False) as client:
        yield client


def picture(width: int = 80, height: int = 60, seed: int = 0) -> Image.Image:
    """Smooth colours that differ from seed to seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def free_port() -> int:
    """A port that nobody has, between those of Ray's workers and those that the system gives away: nobody gets it meanwhile."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@pytest.fixture
def png() -> bytes:
    return encoded(picture())
