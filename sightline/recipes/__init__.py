"""Recipes: Python functions that return a run's whole specification, named for scale and hardware.

A recipe of your own is `my_module:my_function`; any field of any recipe is overridden by `key=value` on the command line.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from sightline.pipelines.train.spec import RunSpec
from sightline.recipes.clusters import clip_vit_b16, clip_vit_b32, clip_vit_l14
from sightline.recipes.demo import clip_demo
from sightline.recipes.inductive import inductive_cct, inductive_hybrid, inductive_vit, ladder_small
from sightline.recipes.predictive import captions_demo, captions_small, words_demo, words_small
from sightline.recipes.segmentation import lseg_camvid, lseg_scenes, lseg_vit_l14
from sightline.recipes.small import clip_small, lit_small
from sightline.recipes.supervised import imagenette_finetune, imagenette_small, vit_b16, vit_h14, vit_l16

RECIPES: dict[str, Callable[[], RunSpec]] = {
    recipe.__name__: recipe
    for recipe in (
        *(clip_demo, clip_small, lit_small, clip_vit_b32, clip_vit_b16, clip_vit_l14),
        *(imagenette_small, imagenette_finetune, vit_b16, vit_l16, vit_h14),
        *(lseg_camvid, lseg_scenes, lseg_vit_l14),
        *(ladder_small, inductive_vit, inductive_hybrid, inductive_cct),
        *(words_demo, captions_demo, words_small, captions_small),
    )
}


def find_recipe(name: str) -> RunSpec:
    """The specification of a recipe by its name or by `module:function`.

    Raises:
        ValueError: there is no such recipe.
    """
    if name in RECIPES:
        return RECIPES[name]()
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(f"unknown recipe {name!r}; choose {', '.join(RECIPES)}, or name your own as module:function")
    try:
        recipe = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no recipe {name!r}: {error}") from error
    spec = recipe()
    if not isinstance(spec, RunSpec):
        raise ValueError(f"{name} returned {type(spec).__name__}, not a sightline.pipelines.train.spec.RunSpec")
    return spec
