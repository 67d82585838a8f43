"""The image tower as a timm folder: `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the image's embedding.

    config.json           the architecture by timm's name, its arguments, and the preprocessing
    model.safetensors     the trunk; the projection into the joint space is timm's classifier (its bias 0)

Of two towers the embedding is the "logits" (as in timm's own CLIP towers), and `num_classes=0` gives the trunk's features;
open_clip's own vision transformer is converted by timm's reader of open_clip weights. A classifier's logits are timm's.
transformers reads the same folder: its `AutoModelForImageClassification` gives the same logits.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import save_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from sightline.models.interchange.plain import odd_vision, only_ours, uses_quick_gelu
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, Towers

TOLERANCE = 1e-6
LOAD = "model = timm.create_model('local-dir:{folder}', pretrained=True)"
CONFIG = "config.json"


def refusal(config: ModelConfig) -> str | None:
    """Why timm cannot hold this image tower; None if it can."""
    reason: str | None
    if config.is_classifier:
        reason = "its head has a hidden layer, and a timm classifier is one linear layer" if config.embed_dim else None
    elif not config.vision.get("timm_model_name"):
        reason = odd_vision(config.vision)
    elif not (reason := only_ours(config.vision)):
        if config.vision.get("timm_proj", "linear") == "mlp":
            reason = "its projection (timm_proj) is an MLP, and a timm classifier is one linear layer"
        elif config.vision.get("timm_pool") in ("abs_attn", "rot_attn"):
            reason = "it pools by open_clip's attention (timm_pool), outside the trunk"
    return f"timm cannot build this image tower: {reason}" if reason else None


def write(config: ModelConfig, towers: Towers, folder: Path) -> None:
    """Write the folder's two files."""
    model, arguments = _trunk(config, towers) if config.vision.get("timm_model_name") else _vision_transformer(config, towers)
    save_for_hf(
        model,
        folder,
        model_config={"label_names": list(config.classes)} if config.is_classifier else None,
        model_args=arguments,
        safe_serialization=True,
        data_config=_data_config(config.preprocess),
    )
    # timm takes the number of classes from the top level too; transformers gives it itself, and a second one would be an error.
    described = json.loads((folder / CONFIG).read_text())
    described["model_args"].pop("num_classes", None)
    (folder / CONFIG).write_text(json.dumps(described, indent=1) + "\n")


def embed(config: ModelConfig, folder: Path, image_BCHW: Tensor, tokens_NT: Tensor) -> tuple[Tensor, None]:
    """Unit embeddings (of a classifier: logits, as unit vectors too) by timm alone, which has no text tower."""
    model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    with torch.inference_mode():
        return F.normalize(model(config.preprocess.normalise(image_BCHW)), dim=-1), None


def _trunk(config: ModelConfig, towers: Towers) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of the timm trunk that has the projection as its classifier; timm knows its arguments."""
    model = copy.deepcopy(towers.visual.trunk)
    if hasattr(towers.visual.head, "proj"):
        projection = towers.visual.head.proj
        pool = None if config.is_classifier else config.vision.get("timm_pool", "avg") or None  # None: as the trunk pools already
        model.reset_classifier(projection.out_features, global_pool=pool)
        classifier = model.get_classifier()
        with torch.no_grad():
            classifier.weight.copy_(projection.weight)
            classifier.bias.zero_() if projection.bias is None else classifier.bias.copy_(projection.bias)
    return model, {}


def _vision_transformer(config: ModelConfig, towers: Towers) -> tuple[nn.Module, dict[str, Any]]:
    """timm's vision transformer with the weights of open_clip's, and the arguments that build it."""
    vision = towers.visual
    arguments = {
        "img_size": config.preprocess.size,
        "patch_size": vision.patch_size[0],
        "embed_dim": vision.conv1.out_channels,
        "depth": len(vision.transformer.resblocks),
        "num_heads": vision.transformer.resblocks[0].attn.num_heads,
        "mlp_ratio": config.vision.get("mlp_ratio", 4.0),
    }
    name = "vit_base_patch32_clip_quickgelu_224" if uses_quick_gelu(vision) else "vit_base_patch32_clip_224"
    model = timm.create_model(name, num_classes=config.embed_dim, **arguments)
    weights = {f"visual.{key}": tensor for key, tensor in vision.state_dict().items()}
    model.load_state_dict(checkpoint_filter_fn(weights, model), strict=True)
    return model, arguments


def _data_config(preprocess: Preprocess) -> dict[str, Any]:
    return {
        "input_size": (3, preprocess.size, preprocess.size),
        "mean": preprocess.mean,
        "std": preprocess.std,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "squash" if preprocess.resize == "squash" else "center",
    }
