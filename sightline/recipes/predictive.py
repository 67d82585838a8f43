"""Recipes that predict captions, to compare CLIP with (Radford et al. 2021, figure 2): data, image tower and steps are CLIP's own.

`sightline evaluate` gives their zero-shot accuracy as it does CLIP's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sightline.models.objectives import Prediction
from sightline.pipelines.train.spec import RunSpec
from sightline.recipes.demo import clip_demo
from sightline.recipes.small import clip_small

DECODER = {"width": 128, "heads": 4, "layers": 2}


def words_demo() -> RunSpec:
    """`clip_demo`, but the caption's words are predicted in any order."""
    return _predicting(clip_demo(), "words_demo", {"predicts": "words"})


def captions_demo() -> RunSpec:
    """`clip_demo`, but the caption is predicted word by word."""
    return _predicting(clip_demo(), "captions_demo", {"predicts": "captions", **DECODER})


def words_small() -> RunSpec:
    """`clip_small`, but the caption's words are predicted in any order."""
    return _predicting(clip_small(), "words_small", {"predicts": "words"})


def captions_small() -> RunSpec:
    """`clip_small`, but the caption is predicted word by word."""
    return _predicting(clip_small(), "captions_small", {"predicts": "captions", **DECODER})


def _predicting(spec: RunSpec, recipe: str, text: dict[str, Any]) -> RunSpec:
    text = {"context_length": spec.model.context_length, **text}
    return replace(spec, recipe=recipe, model=replace(spec.model, text=text), objective=Prediction())
