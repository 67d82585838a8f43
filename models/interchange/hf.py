"""A `transformers` folder: `CLIPModel` and `CLIPProcessor` (tokenizer and image processor), by transformers' own writers.

open_clip's plain vision transformer and causal text transformer are CLIP's, so each tensor has its place there under another
name; the joint query-key-value projection is cut in three. Other towers are refused: for a timm tower `--to timm` writes what
transformers loads too. The processor pads with the end token where open_clip pads with 0; the text tower looks no further than
the first end token, so embeddings do not differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.models.interchange.extras import need
from sightline.models.interchange.plain import no_text_transformer, odd_text, odd_vision, uses_quick_gelu
from sightline.models.interchange.tokenizer import END_PIECE, START_PIECE, build
from sightline.models.preprocess import Preprocess
from sightline.models.text import END, START
from sightline.models.towers import ModelConfig, Towers

TOLERANCE = 1e-6
LOAD = "model = transformers.CLIPModel.from_pretrained('{folder}')"

# open_clip's names → transformers', in this order.
NAMES = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # transformers' own spelling
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^text\.token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^text\.positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^text\.ln_final\.", "text_model.final_layer_norm."),
    (r"^text\.text_projection$", "text_projection.weight"),
    (r"^text\.transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"\.attn\.", ".self_attn."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
TRANSPOSED = ("visual_projection.weight", "text_projection.weight")  # open_clip multiplies from the left


def refusal(config: ModelConfig) -> str | None:
    """Why transformers' CLIPModel cannot hold this model; None if it can."""
    reason = no_text_transformer(config.text) or odd_vision(config.vision) or odd_text(config.text)
    if not reason and config.init_logit_bias is not None:
        reason = "it has a logit bias (sigmoid loss)"
    return f"transformers' CLIPModel cannot hold this model: {reason}" if reason else None


def write(config: ModelConfig, towers: Towers, folder: Path) -> None:
    """Write model, image processor and tokenizer.

    Raises:
        ModuleNotFoundError: transformers is not installed.
    """
    transformers = need("transformers", "hf")
    model = transformers.CLIPModel(_clip_config(transformers, config, towers))
    model.load_state_dict(renamed(towers.state_dict()), strict=True)
    with _quiet(transformers):
        model.save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(  # CLIPTokenizer would put its own cleaning in the place of open_clip's
        tokenizer_object=build(config.tokenizer, "hf"),
        bos_token=START_PIECE,
        eos_token=END_PIECE,
        unk_token=END_PIECE,
        pad_token=END_PIECE,
        model_max_length=config.context_length,
    )
    processor = transformers.CLIPImageProcessor(**_image_processor(config.preprocess))
    transformers.CLIPProcessor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)


def embed(config: ModelConfig, folder: Path, image_BCHW: Tensor, tokens_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Unit embeddings by transformers alone."""
    transformers = need("transformers", "hf")
    with _quiet(transformers):
        model = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        image_BD = model.get_image_features(pixel_values=config.preprocess.normalise(image_BCHW)).pooler_output
        text_ND = model.get_text_features(input_ids=tokens_NT).pooler_output
    return F.normalize(image_BD, dim=-1), F.normalize(text_ND, dim=-1)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's tensors under transformers' names."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        for old, new in NAMES:
            name = re.sub(old, new, name)
        if ".in_proj_" in name:
            for part, third in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
                found[name.replace("in_proj_", f"{part}_proj.")] = third.clone()
        elif name in TRANSPOSED:
            found[name] = tensor.T.contiguous()
        else:
            found[name] = tensor.reshape(()) if name == "logit_scale" else tensor
    return found


def _clip_config(transformers: Any, config: ModelConfig, towers: Towers) -> Any:
    activation = "quick_gelu" if uses_quick_gelu(towers) else "gelu"
    vision, text = towers.visual, towers.text
    shared = {"hidden_act": activation, "projection_dim": config.embed_dim}
    return transformers.CLIPConfig(
        projection_dim=config.embed_dim,
        vision_config=shared
        | {
            "hidden_size": vision.conv1.out_channels,
            "intermediate_size": vision.transformer.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(vision.transformer.resblocks),
            "num_attention_heads": vision.transformer.resblocks[0].attn.num_heads,
            "image_size": config.preprocess.size,
            "patch_size": vision.patch_size[0],
        },
        text_config=shared
        | {
            "vocab_size": text.vocab_size,
            "hidden_size": text.token_embedding.embedding_dim,
            "intermediate_size": text.transformer.resblocks[0].mlp.c_fc.out_features,
            "num_hidden_layers": len(text.transformer.resblocks),
            "num_attention_heads": text.transformer.resblocks[0].attn.num_heads,
            "max_position_embeddings": text.context_length,
            "bos_token_id": START,
            "eos_token_id": END,
            "pad_token_id": END,
        },
    )


def _image_processor(preprocess: Preprocess) -> dict[str, Any]:
    side = {"height": preprocess.size, "width": preprocess.size}
    squash = preprocess.resize == "squash"
    return {
        "size": side if squash else {"shortest_edge": preprocess.size},
        "crop_size": side,
        "do_center_crop": not squash,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars, which are for downloads and many shards."""
    progress = transformers.utils.logging
    shown = progress.is_progress_bar_enabled()
    progress.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            progress.enable_progress_bar()
