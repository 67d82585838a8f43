"""Which towers are CLIP's own (Radford et al. 2021), the only ones that other libraries build from a few numbers.

open_clip's configurations have many switches (layer scale, attentional pooling, ...); a target that cannot express one must refuse
rather than drop it. A setting that has its default value switches nothing on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import QuickGELU
from timm.layers import QuickGELU as TimmQuickGELU
from timm.models import is_model, model_entrypoint
from torch import nn

# What the targets carry over; patch dropout acts in training only.
VISION_SIZES = frozenset({"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "patch_dropout"})
TEXT_SIZES = frozenset({"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"})
# How open_clip would choose a tokenizer; ours is the artifact's.
TOKENIZER_SETTINGS = frozenset({"hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"})


def odd_vision(vision: Mapping[str, Any]) -> str | None:
    """Why this image tower is not CLIP's plain vision transformer; None if it is."""
    if name := vision.get("timm_model_name"):
        return f"its image tower is timm's {name}"
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is CLIP's ResNet"
    return _odd(vision, CLIPVisionCfg(), VISION_SIZES, "image tower")


def odd_text(text: Mapping[str, Any]) -> str | None:
    """Why this text tower is not CLIP's plain causal transformer; None if it is."""
    return no_text_transformer(text) or _odd(text, CLIPTextCfg(), TEXT_SIZES | TOKENIZER_SETTINGS, "text tower")


def no_text_transformer(text: Mapping[str, Any]) -> str | None:
    """Why there is no text tower that another library could build; None if there is one."""
    if not text:
        return "it is a classifier"
    return "its text tower is a bag of words" if text.get("bag_of_words") else None


def only_ours(vision: Mapping[str, Any]) -> str | None:
    """Why timm cannot build this image tower by itself: its name was registered by another package; None if it can."""
    name = vision.get("timm_model_name")
    if name and is_model(name) and model_entrypoint(name).__module__.partition(".")[0] != "timm":
        return f"its image tower {name} is not among timm's own models"
    return None


def uses_quick_gelu(module: nn.Module) -> bool:
    """Whether the model was built with x·sigmoid(1.702 x), as OpenAI's were, rather than with the GELU."""
    return any(isinstance(part, QuickGELU | TimmQuickGELU) for part in module.modules())


def _odd(given: Mapping[str, Any], defaults: object, sizes: frozenset[str], tower: str) -> str | None:
    odd = sorted(name for name, value in given.items() if name not in sizes and value != getattr(defaults, name))
    return f"its {tower} sets {', '.join(odd)}" if odd else None
