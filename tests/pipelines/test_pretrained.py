"""A dual encoder goes on from somebody else's: both towers and the temperature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from sightline.models.towers import build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.locked import detach_trunk
from sightline.pipelines.train.spec import RunSpec, prepare
from sightline.recipes import find_recipe


def spec_from(source: Path, corpus: Corpus, recipe: str = "clip_small", *more: str) -> RunSpec:
    return prepare(
        find_recipe(recipe), [f"corpus={corpus.location}", "global_batch=8", f"model.pretrained={source}", *more], gpus=False
    )


def test_both_towers_and_the_scale_start_from_an_open_clip_folder(digits: Corpus, tmp_path: Path) -> None:
    torch.manual_seed(7)
    theirs = build(find_recipe("clip_small").model)
    theirs.logit_scale.data.fill_(3.0)
    weights = {name: tensor.reshape(()) if name == "logit_scale" else tensor for name, tensor in theirs.state_dict().items()}
    save_file(weights, tmp_path / "open_clip_model.safetensors")
    spec = spec_from(tmp_path, digits)
    towers = build(spec.model)
    assert detach_trunk(towers, spec.model) is None
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in towers.state_dict().items())

    # The run is named by what the file holds, wherever it lies; without it the name is what it was.
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    (copy / "open_clip_model.safetensors").write_bytes((tmp_path / "open_clip_model.safetensors").read_bytes())
    fresh = prepare(find_recipe("clip_small"), [f"corpus={digits.location}", "global_batch=8"], gpus=False)
    assert spec_from(copy, digits).run_id == spec.run_id != fresh.run_id
    with pytest.raises(ValueError, match="is another file than the run recorded"):
        detach_trunk(towers, replace(spec.model, pretrained_sha256="0" * 64))


def test_a_model_may_compute_as_openais_do(digits: Corpus, tmp_path: Path) -> None:
    config = replace(find_recipe("clip_small").model, quick_gelu=True)
    save_file(build(config).state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    spec = spec_from(tmp_path, digits)
    with pytest.raises(ValueError, match=r"trained with QuickGELU and this model computes GELU; .* set model\.quick_gelu"):
        detach_trunk(build(spec.model), spec.model)
    quick = spec_from(tmp_path, digits, "clip_small", "quick_gelu=true")
    assert detach_trunk(build(quick.model), quick.model) is None and quick.run_id != spec.run_id


def test_a_source_without_a_text_tower_or_a_model_without_one_is_refused(digits: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    spec = spec_from(path, digits)
    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": "linear", "image_size": 160}
    model = replace(spec.model, vision=vision)
    with pytest.raises(ValueError, match=r"has no text tower; give it as model\.pretrained_image"):
        detach_trunk(build(model), model)
    with pytest.raises(ValueError, match=r"give the image tower's as model\.pretrained_image"):
        spec_from(path, digits, "words_small")
    with pytest.raises(ValueError, match=r"give a classifier's as model\.pretrained_image"):
        spec_from(path, digits, "vit_b16")
