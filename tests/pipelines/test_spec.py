from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from sightline.models.towers import build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.spec import RunSpec, canonical_json, from_json, override, prepare
from sightline.recipes import RECIPES, find_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json(name: str) -> None:
    spec = find_recipe(name)
    assert spec.recipe == name
    assert from_json(canonical_json(asdict(spec))) == spec


@pytest.mark.parametrize("name", ["clip_demo", "clip_small", "lit_small"])
def test_small_recipes_can_be_built(name: str) -> None:
    assert sum(p.numel() for p in build(find_recipe(name).model).parameters()) < 3e7


def test_the_id_follows_numbers_and_not_places(digits: Corpus) -> None:
    spec = prepare(find_recipe("clip_demo"), [f"corpus={digits.location}", "global_batch=8"], gpus=False)
    assert spec.data.root == digits.root and spec.precision == "fp32"
    moved = replace(spec, data=replace(spec.data, corpus="/elsewhere"))
    assert moved.run_id == spec.run_id
    changed = [
        replace(spec, steps=spec.steps + 1),
        replace(spec, seed=1),
        replace(spec, optim=replace(spec.optim, lr=1e-5)),
        replace(spec, data=replace(spec.data, root="0" * 64)),
        replace(spec, model=replace(spec.model, pretrained_image_sha256="1" * 64)),
    ]
    assert len({spec.run_id, *(other.run_id for other in changed)}) == len(changed) + 1


def test_overrides_are_typed_and_may_be_short() -> None:
    spec = find_recipe("clip_vit_b32")
    changed = override(spec, ["lr=1e-4", "steps=7", "model.vision.patch_dropout=0.5", "data.split=train", "crop_area=null"])
    assert (changed.optim.lr, changed.steps, changed.data.split) == (1e-4, 7, "train")
    assert changed.model.vision["patch_dropout"] == 0.5 and changed.data.augment.crop_area is None
    for wrong, message in (
        ("width=3", "ambiguous"),
        ("colour=red", "unknown setting"),
        ("steps=x", "steps"),
        ("steps", "key=value"),
    ):
        with pytest.raises(ValueError, match=message):
            override(spec, [wrong])


@pytest.mark.parametrize(
    "wrong",
    [
        *("steps=0", "global_batch=0", "lr=NaN", "lr=-1", "grey=2", "word_drop=1", "feature_drop=0.5", "model.lock_image=true"),
        *("eps=0", "clip_norm=-1", "warmup_steps=-1", "weight_decay=-0.1", "beta1=1", "beta2=2"),
        *("model.preprocess.size=0", "crop_area=[0.5, 2]", "crop_area=[0, 1]", "shift=-1"),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong: str, digits: Corpus) -> None:
    with pytest.raises(ValueError, match=r"give|leave"):
        prepare(find_recipe("clip_demo"), [f"corpus={digits.location}", "global_batch=8", wrong], gpus=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("model.preprocess.size=63", r"does not take images of 63 pixels .* what model\.vision\.image_size says"),
        ("model.vision.width=130", "these towers cannot be built: embed_dim must be divisible by num_heads"),
        ("model.text.vocab_size=100", "the tokenizer has 49408 words"),
    ],
)
def test_a_model_that_does_not_fit_its_input_is_refused(wrong: str, message: str, digits: Corpus) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(find_recipe("clip_small"), [f"corpus={digits.location}", "global_batch=8", wrong], gpus=False)


def own_recipe() -> RunSpec:
    return replace(find_recipe("clip_demo"), recipe="mine")


def no_recipe() -> int:
    return 3


def test_a_recipe_of_ones_own_is_found_by_name() -> None:
    assert find_recipe("tests.pipelines.test_spec:own_recipe").recipe == "mine"
    for name in ("nothing", "tests.pipelines.test_spec:absent", "no_module:x", "tests.pipelines.test_spec:no_recipe"):
        with pytest.raises(ValueError, match=r"unknown recipe|no recipe|not a"):
            find_recipe(name)
