"""FLOPs against the published profile of open_clip (twice the multiply-accumulates of a forward pass), and by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sightline.models.flops import cost
from sightline.recipes import find_recipe


@pytest.mark.parametrize(
    ("recipe", "image", "text"),
    [("clip_vit_b32", 8.82, 5.96), ("clip_vit_b16", 35.13, 5.96), ("clip_vit_l14", 162.03, 13.30)],
)
def test_the_towers_cost_what_open_clip_publishes(recipe: str, image: float, text: float) -> None:
    """In GFLOPs, with the two decimals that the table has."""
    found = cost(find_recipe(recipe).model)
    assert found.image / 1e9 == pytest.approx(image, rel=1e-3) and found.text / 1e9 == pytest.approx(text, rel=1e-3)
    assert found.training == 3 * (found.image + found.text)


@pytest.mark.parametrize(("recipe", "millions"), [("vit_b16", 86), ("vit_l16", 307), ("vit_h14", 632)])
def test_the_classifiers_have_the_sizes_of_the_paper(recipe: str, millions: int) -> None:
    assert cost(find_recipe(recipe).model).parameters / 1e6 == pytest.approx(millions, rel=0.015)


def test_a_small_tower_by_hand() -> None:
    """64 px in patches of 8: 64 tokens and one for the class, four blocks of width 128, a projection to 128."""
    tokens, width, layers = 65, 128, 4
    patches = 2 * 64 * width * 3 * 8 * 8
    block = 2 * tokens * width * (3 * width + width + 8 * width) + 2 * 2 * tokens * tokens * width
    assert cost(find_recipe("clip_small").model).image == patches + layers * block + 2 * width * 128


def test_a_locked_trunk_costs_nothing_in_a_step() -> None:
    """What trains of the image tower are the two layers of its projection: 192 → 512 → 512."""
    model = find_recipe("lit_small").model
    projection = 2 * (192 * 2 * 512 + 2 * 512 * 512)
    assert cost(model).training == 3 * (cost(model).text + projection)
    assert cost(replace(model, lock_image=False)).training == 3 * (cost(model).text + cost(model).image)


@pytest.mark.parametrize("recipe", ["clip_vit_b16", "vit_b16"])
def test_dropped_patches_cost_nothing(recipe: str) -> None:
    """Of 196 patches half go on, with the class token; projections of patches and classes see all."""
    model = find_recipe(recipe).model
    setting = "patch_dropout" if model.text else "patch_drop_rate"
    found = cost(replace(model, vision={**model.vision, setting: 0.5}))
    tokens, width, layers = 98 + 1, 768, 12
    patches = 2 * 196 * width * 3 * 16 * 16
    head = 2 * width * 512 if model.text else 2 * width * width
    block = 2 * tokens * width * (3 * width + width + 8 * width) + 2 * 2 * tokens * tokens * width
    assert found.image == patches + layers * block + head


def test_a_contrastive_loss_costs_a_row_of_logits() -> None:
    model = find_recipe("clip_vit_b32").model
    assert cost(model, 32_768).training - cost(model).training == 3 * 2 * 32_768 * 512
