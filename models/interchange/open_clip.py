"""An open_clip folder, as its `local-dir:` schema (and the Hugging Face hub) reads it: the same towers, the same tensors.

    open_clip_config.json           towers and preprocessing
    open_clip_model.safetensors     every weight as it is; the temperature and the bias as scalars, as open_clip has them

The tokenizer is open_clip's own byte-pair vocabulary, which comes with its package, at the model's context length.
Where open_clip or timm would choose a different tokenizer by the configuration, that choice is left out: the artifact's is what
the model was trained with.
"""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from sightline.models.interchange.plain import TOKENIZER_SETTINGS, no_text_transformer, only_ours, uses_quick_gelu
from sightline.models.towers import ModelConfig, Towers

TOLERANCE = 1e-6
LOAD = "model, _, preprocess = open_clip.create_model_and_transforms('local-dir:{folder}')"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def refusal(config: ModelConfig) -> str | None:
    """Why open_clip cannot build these towers; None if it can."""
    reason = no_text_transformer(config.text) or only_ours(config.vision)
    return f"open_clip cannot build this model: {reason}" if reason else None


def write(config: ModelConfig, towers: Towers, folder: Path) -> None:
    """Write the folder's two files."""
    size = config.preprocess.size
    model = {
        "embed_dim": config.embed_dim,
        "vision_cfg": dict(config.vision) | {"image_size": size},
        "text_cfg": {name: value for name, value in config.text.items() if name not in TOKENIZER_SETTINGS},
        "custom_text": True,  # the text tower is a module of its own, so the tensors keep their names
        "quick_gelu": uses_quick_gelu(towers),
        "init_logit_scale": config.init_logit_scale,
        "init_logit_bias": config.init_logit_bias,
    }
    preprocess = {
        "mean": config.preprocess.mean,
        "std": config.preprocess.std,
        "interpolation": "bicubic",
        "resize_mode": config.preprocess.resize,
    }
    (folder / CONFIG).write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}, indent=1) + "\n")
    weights = {name: tensor.reshape(()) if name.startswith("logit_") else tensor for name, tensor in towers.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / WEIGHTS)


def embed(config: ModelConfig, folder: Path, image_BCHW: Tensor, tokens_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings by open_clip alone."""
    model = open_clip.create_model(f"local-dir:{folder.resolve()}", require_pretrained=True).eval()
    with torch.inference_mode():
        image_BD = model.encode_image(config.preprocess.normalise(image_BCHW), normalize=True)
        return image_BD, model.encode_text(tokens_NT, normalize=True)
