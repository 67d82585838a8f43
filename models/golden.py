"""The inputs half of an artifact's proof: a file, texts, and what each stage before the towers made of them when it was trained.

    picture.jpeg → decoder → rgb → preprocessing → pixels            texts → tokenizer → tokens

Each stage is fed what the trained one was fed, so that the first stage to differ is named, and not one behind it. Artifacts of
before this check have none of these entries, and are checked from the towers on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sightline.models.codec import decode_rgb
from sightline.models.encode import encode
from sightline.models.preprocess import Preprocess
from sightline.models.text import Tokenizer

FILE, RGB, PIXELS, TEXTS, TOKENS = "picture", "picture_rgb", "picture_pixels", "texts", "tokens"
HEIGHT, WIDTH = 90, 120
# Grey levels. One machine's decoder and kernels may round otherwise than another's; another crop or kernel is off by dozens.
DECODED, RESAMPLED = 3, 2


def picture() -> bytes:
    """A small JPEG of smooth colours."""
    coarse_HWC = np.random.default_rng(0).integers(0, 256, (6, 8, 3))
    rows, columns = (np.linspace(0, side - 1, full) for side, full in ((6, HEIGHT), (8, WIDTH)))
    smooth = np.stack([_bilinear(coarse_HWC[..., i], rows, columns) for i in range(3)], axis=-1)
    return encode(smooth.round().astype(np.uint8), "jpeg", 90)


def _bilinear(grid: Any, rows: Any, columns: Any) -> Any:
    across = np.stack([np.interp(columns, np.arange(grid.shape[1]), line) for line in grid])
    return np.stack([np.interp(rows, np.arange(grid.shape[0]), line) for line in across.T], axis=-1)


def inputs(preprocess: Preprocess, texts: Sequence[str]) -> dict[str, Tensor]:
    """What an artifact keeps beside its tokens: the file, its stages, and the texts as the bytes of a JSON list."""
    file = picture()
    rgb_HWC = decode_rgb(file)
    return {
        FILE: as_tensor(file),
        RGB: torch.from_numpy(rgb_HWC.copy()),
        PIXELS: preprocess.pixels(rgb_HWC).contiguous(),
        TEXTS: as_tensor(json.dumps(list(texts)).encode()),
    }


def check_inputs(golden: Mapping[str, Tensor], preprocess: Preprocess, tokenizer: Tokenizer) -> None:
    """Run each stage again.

    Raises:
        ValueError: one gives something else; the message names it.
    """
    if FILE in golden:
        off = _difference(torch.from_numpy(decode_rgb(as_bytes(golden[FILE]))), golden[RGB])
        if off > DECODED:
            raise ValueError(f"the image decoder differs: its pixels are off by {off} grey levels; check pillow and simplejpeg")
        off = _difference(preprocess.pixels(golden[RGB].numpy()), golden[PIXELS])
        if off > RESAMPLED:
            raise ValueError(
                f"the preprocessing differs: its pixels are off by {off} grey levels; check `preprocess` in artifact.json"
            )
    if TEXTS in golden and not torch.equal(tokenizer(json.loads(as_bytes(golden[TEXTS]))), golden[TOKENS]):
        raise ValueError(
            "the tokenizer differs: other tokens than the trained model saw; check `tokenizer` in artifact.json, and open_clip"
        )


def other_versions(trained: Mapping[str, str]) -> str:
    """The libraries whose versions are others now: `torch 2.15.0 (trained with 2.14.1)`; empty where there are none."""
    found = []
    for name, then in trained.items():
        try:
            now = version(name)
        except PackageNotFoundError:
            continue  # python itself, and what serving does without
        if now != then:
            found.append(f"{name} {now} (trained with {then})")
    return ", ".join(found)


def as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _difference(got: Tensor, want: Tensor) -> int:
    """Largest difference in grey levels; 255 where not even the sizes agree."""
    return int((got.int() - want.int()).abs().max()) if got.shape == want.shape else 255
