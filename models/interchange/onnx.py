"""Two ONNX graphs that need nothing of ours: uint8 pixels or token ids in, unit embeddings out, any batch size.

    image.onnx           pixels uint8 [batch, 3, S, S] → embeddings float32 [batch, D]; the normalisation is inside
    text.onnx            tokens int64 [batch, context] → embeddings float32 [batch, D]
    *.onnx.data          their weights (a graph file alone ends at 2 GB)
    preprocess.json      how an image becomes S × S pixels, and the temperature (and bias) of the logits
    tokenizer.json       the tokenizer with its padding and truncation: `tokenizers.Tokenizer.from_file`

Any two towers can be exported, also those that no other library has.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sightline.models.interchange.extras import need
from sightline.models.interchange.tokenizer import build
from sightline.models.preprocess import Preprocess
from sightline.models.text import END, START
from sightline.models.towers import ModelConfig, Towers

TOLERANCE = 1e-4
LOAD = "images = onnxruntime.InferenceSession('{folder}/image.onnx'); texts = onnxruntime.InferenceSession('{folder}/text.onnx')"


class ImageEncoder(nn.Module):
    """uint8 pixels → unit embeddings."""

    def __init__(self, visual: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.visual, self.preprocess = visual, preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.visual(self.preprocess.normalise(pixels)), dim=-1)


class TextEncoder(nn.Module):
    """Token ids → unit embeddings."""

    def __init__(self, text: nn.Module) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        return F.normalize(self.text(tokens), dim=-1)


def refusal(config: ModelConfig) -> str | None:
    """Why there are no two graphs; None for any two towers: a graph is traced from them, whatever they are."""
    return "a classifier has no text tower to trace" if config.is_classifier else None


def write(config: ModelConfig, towers: Towers, folder: Path) -> None:
    """Write both graphs, the preprocessing and the tokenizer.

    Raises:
        ModuleNotFoundError: onnx, onnxscript, onnxruntime or tokenizers is not installed.
    """
    for package in ("onnx", "onnxscript", "onnxruntime", "tokenizers"):
        need(package, "onnx")
    size = config.preprocess.size
    pixels = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    tokens = torch.zeros(2, config.context_length, dtype=torch.int64)
    tokens[:, 0], tokens[:, 1] = START, END
    trace(ImageEncoder(towers.visual, config.preprocess), pixels, "pixels", folder / "image.onnx")
    trace(TextEncoder(towers.text), tokens, "tokens", folder / "text.onnx")
    (folder / "preprocess.json").write_text(json.dumps(_described(config, towers), indent=1) + "\n")
    tokenizer = build(config.tokenizer, "onnx")
    tokenizer.enable_truncation(config.context_length)
    tokenizer.enable_padding(pad_id=0, pad_token="!", length=config.context_length)  # as open_clip: id 0, which is the piece "!"
    tokenizer.save(str(folder / "tokenizer.json"))


def embed(config: ModelConfig, folder: Path, image_BCHW: Tensor, tokens_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings by onnxruntime alone."""
    runtime = need("onnxruntime", "onnx")
    found = []
    for name, inputs in (("image.onnx", {"pixels": image_BCHW.numpy()}), ("text.onnx", {"tokens": tokens_NT.numpy()})):
        session = runtime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        found.append(torch.from_numpy(np.asarray(session.run(None, inputs)[0])))
    return found[0], found[1]


def trace(encoder: nn.Module, example: Tensor, name: str, path: Path) -> None:
    """Write one graph, with the batch size left open."""
    loggers = [logging.getLogger(package) for package in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:  # their progress is for those who debug them
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                encoder.eval(),
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[name],
                output_names=["embeddings"],
                verbose=False,
            )
            assert program is not None
            program.save(path, external_data=True)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _described(config: ModelConfig, towers: Towers) -> dict[str, object]:
    bias = towers.logit_bias
    return {
        "size": config.preprocess.size,
        "resize": config.preprocess.resize,
        "interpolation": "bicubic, antialiased",
        "channels": "RGB, uint8, normalised inside image.onnx",
        "mean": config.preprocess.mean,
        "std": config.preprocess.std,
        "context_length": config.context_length,
        "logit_scale": float(towers.logit_scale.detach().exp()),
        "logit_bias": None if bias is None else float(bias.detach()),
    }
