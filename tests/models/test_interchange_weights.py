"""Training can start from an artifact, an open_clip or a timm checkpoint: whole towers, or a refusal that says what is amiss."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from sightline.models.interchange import load_weights
from sightline.models.interchange.export import export
from sightline.models.interchange.load_weights import Checkpoint, find, load_into
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from tests.models.conftest import CONV, TIMM, VIT, random_towers
from tests.models.exporting import CONVNEXT, SIGMOID, TIMM_VIT, artifact_of, random_pixels

LARGER = replace(VIT, vision=dict(VIT.vision) | {"image_size": 64}, preprocess=Preprocess(size=64))
SMALL_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}  # timm's arguments


def same(left: nn.Module, right: nn.Module, prefix: str = "") -> bool:
    theirs = right.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in left.state_dict().items() if name.startswith(prefix))


def small_vit(**options: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **(SMALL_VIT | options)).eval()


def test_an_artifact_fills_both_towers_whether_named_by_itself_or_by_its_run(tmp_path: Path) -> None:
    artifact_of(VIT, tmp_path / "run" / "artifact")
    wanted = load_file(tmp_path / "run" / "artifact" / "weights.safetensors")
    for source in (tmp_path / "run", tmp_path / "run" / "artifact", tmp_path / "run" / "artifact" / "weights.safetensors"):
        towers = random_towers(VIT, seed=5)
        loaded = load_into(towers, str(source))
        assert (loaded.missing, loaded.unexpected) == ((), ())
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in towers.state_dict().items())
        assert loaded.digest == hashlib.sha256((tmp_path / "run" / "artifact" / "weights.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("config", [VIT, SIGMOID, TIMM_VIT], ids=["vit", "sigmoid", "timm"])
def test_an_open_clip_folder_gives_every_weight(config: object, tmp_path: Path) -> None:
    assert isinstance(config, type(VIT))
    artifact_of(config, tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out", "open_clip")
    towers = random_towers(config, seed=5)
    loaded = load_into(towers, str(tmp_path / "out"))
    assert (loaded.missing, loaded.unexpected) == ((), ())
    wanted = load_file(tmp_path / "artifact" / "weights.safetensors")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in towers.state_dict().items())


def test_open_clip_s_plain_clip_has_its_text_tower_under_other_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = open_clip.CLIP(embed_dim=16, vision_cfg=dict(VIT.vision), text_cfg=dict(VIT.text)).eval()
    save_file(plain.state_dict(), tmp_path / "clip.safetensors")
    towers = random_towers(VIT, seed=5)
    loaded = load_into(towers, str(tmp_path / "clip.safetensors"))
    assert (loaded.missing, loaded.unexpected) == ((), ())
    inputs, tokens = VIT.preprocess.normalise(random_pixels(VIT)), torch.tensor([[49406, 320, 49407] + [0] * 9])
    with torch.no_grad():
        torch.testing.assert_close(towers.encode_image(inputs), plain.encode_image(inputs), rtol=0, atol=1e-6)
        torch.testing.assert_close(towers.encode_text(tokens), plain.encode_text(tokens), rtol=0, atol=1e-6)


def test_a_name_of_open_clip_means_the_file_that_open_clip_fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(random_towers(VIT).state_dict(), tmp_path / "fetched.safetensors")
    asked = []

    def fetch(config: dict[str, object]) -> str:
        asked.append(config["hf_hub"])
        return str(tmp_path / "fetched.safetensors")

    monkeypatch.setattr(load_weights, "download_pretrained", fetch)
    assert find("ViT-B-32/laion2b_s34b_b79k") == Checkpoint(tmp_path / "fetched.safetensors", quick_gelu=False)
    assert find("ViT-B-32/openai") == Checkpoint(tmp_path / "fetched.safetensors", quick_gelu=True)
    assert asked == ["laion/CLIP-ViT-B-32-laion2B-s34B-b79K/", "timm/vit_base_patch32_clip_224.openai/"]
    with pytest.raises(ValueError, match="trained with QuickGELU and this model computes GELU"):
        load_into(random_towers(VIT), "ViT-B-32/openai")


def test_a_name_of_timm_means_the_file_on_its_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(small_vit().state_dict(), tmp_path / "model.safetensors")
    asked = []

    def fetch(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(tmp_path / "model.safetensors")

    monkeypatch.setattr(load_weights, "hf_hub_download", fetch)
    model = small_vit()
    assert load_into(model, "timm/vit_tiny_patch16_224.augreg_in21k").missing == ()
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors")]


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*_: object) -> str:
        raise FileNotFoundError("no connection")

    monkeypatch.setattr(load_weights, "download_pretrained", fetch)
    with pytest.raises(ValueError, match="cannot be fetched: no connection; give an artifact"):
        find("ViT-B-32/laion2b_s34b_b79k")


def test_the_image_grid_is_interpolated_at_another_resolution(tmp_path: Path) -> None:
    save_file(random_towers(VIT).state_dict(), tmp_path / "small.safetensors")
    towers = random_towers(LARGER, seed=5)
    assert load_into(towers, str(tmp_path / "small.safetensors")).missing == ()
    old = random_towers(VIT).visual.positional_embedding.detach()
    grid = old[1:].unflatten(0, (4, 4)).permute(2, 0, 1)[None]
    wanted = nn.functional.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True)[0].permute(1, 2, 0).flatten(0, 1)
    torch.testing.assert_close(towers.visual.positional_embedding.detach(), torch.cat([old[:1], wanted]), rtol=0, atol=1e-6)
    assert same(towers.visual.transformer, random_towers(VIT).visual.transformer)


def test_deit_fills_the_trunk_and_leaves_the_rest_at_its_start(shared_data: Path) -> None:
    path = shared_data / "weights" / "deit_tiny_patch16_224.safetensors"
    towers, before = random_towers(TIMM), random_towers(TIMM)
    loaded = load_into(towers, str(path))
    stored = load_file(path)
    trunk = towers.visual.trunk.state_dict()
    assert all(torch.equal(trunk[name], stored[name].float()) for name in trunk)
    assert same(towers.text, before.text) and same(towers.visual.head, before.visual.head)
    assert set(loaded.missing) == {name for name in towers.state_dict() if not name.startswith("visual.trunk.")}
    assert loaded.unexpected == ("head.bias", "head.weight")
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_timm_model_takes_another_resolution_and_another_set_of_classes(tmp_path: Path) -> None:
    source = small_vit(num_classes=10)
    save_file(source.state_dict(), tmp_path / "source.safetensors")
    model = small_vit(num_classes=3, img_size=48)
    head = model.head.weight.detach().clone()
    loaded = load_into(model, str(tmp_path / "source.safetensors"))
    assert loaded.missing == ("head.bias", "head.weight")
    assert loaded.unexpected == ("head.bias", "head.weight")
    assert torch.equal(model.head.weight, head)
    wanted = resample_abs_pos_embed(source.pos_embed.detach(), new_size=[6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed.detach(), wanted, rtol=0, atol=1e-6)
    assert same(model.blocks, source.blocks)


def test_an_exported_timm_folder_starts_a_timm_model_with_its_classifier(tmp_path: Path) -> None:
    artifact_of(VIT, tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out", "timm")
    wanted = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    model = timm.create_model("vit_base_patch32_clip_224", num_classes=16, **SMALL_VIT)
    loaded = load_into(model, str(tmp_path / "out"))
    assert (loaded.missing, loaded.unexpected) == ((), ())
    assert same(model, wanted)


@pytest.mark.parametrize("config", [VIT, TIMM_VIT, CONVNEXT], ids=["open_clip's own", "timm vit", "timm convnext"])
def test_the_image_tower_of_a_clip_model_starts_a_timm_model(config: object, tmp_path: Path) -> None:
    assert isinstance(config, type(VIT))
    ours = artifact_of(config, tmp_path / "artifact")
    name = config.vision.get("timm_model_name", "vit_base_patch32_clip_224")
    options = SMALL_VIT if config is VIT else {}
    model = timm.create_model(name, num_classes=0, **options).eval()
    assert load_into(model, str(tmp_path / "artifact")).missing == ()
    inputs = config.preprocess.normalise(random_pixels(config))
    visual = ours.towers.visual
    with torch.no_grad():
        found = model(inputs)
        projected = found @ visual.proj if config is VIT else visual.head(found)
        torch.testing.assert_close(projected, visual(inputs), rtol=0, atol=1e-5)


def test_the_image_tower_alone_is_taken_on_request(tmp_path: Path) -> None:
    save_file(random_towers(VIT).state_dict(), tmp_path / "two.safetensors")
    mixed = replace(VIT, text=CONV.text)
    with pytest.raises(ValueError, match=r"text\.token_embedding\.weight is \[49408, 16\] there and \[49408, 8\] here"):
        load_into(random_towers(mixed), str(tmp_path / "two.safetensors"))
    towers, before = random_towers(mixed, seed=5), random_towers(mixed, seed=5)
    loaded = load_into(towers, str(tmp_path / "two.safetensors"), image_only=True)
    assert loaded.missing == ("logit_scale", "text.text_projection.weight", "text.token_embedding.weight")
    assert same(towers.visual, random_towers(VIT).visual) and same(towers.text, before.text)


def classifier_of(name: str, size: int, classes: int, pretrained: str = "") -> nn.Module:
    config = ModelConfig(
        embed_dim=0,
        vision={"timm_model_name": name},
        text={},
        preprocess=Preprocess(size=size),
        classes=tuple(f"class {i}" for i in range(classes)),
        pretrained_image=pretrained,
    )
    return random_towers(config, seed=classes)


def test_a_classifier_starts_from_the_trunk_of_a_dual_encoder_and_of_a_classifier(tmp_path: Path) -> None:
    dual = artifact_of(TIMM_VIT, tmp_path / "artifact").towers
    save_file(classifier_of("test_vit", 160, 5).state_dict(), tmp_path / "five.safetensors")
    for source, trunk in (
        (tmp_path / "artifact", dual.visual.trunk),
        (tmp_path / "five.safetensors", classifier_of("test_vit", 160, 5).visual.trunk),
    ):
        model = classifier_of("test_vit", 160, 3)
        loaded = load_into(model, str(source), image_only=True)
        assert same(model.visual.trunk, trunk)
        assert loaded.missing == ("visual.head.proj.bias", "visual.head.proj.weight")
        assert same(model.visual.head, classifier_of("test_vit", 160, 3).visual.head)
    towers = random_towers(TIMM_VIT, seed=5)
    load_into(towers, str(tmp_path / "five.safetensors"), image_only=True)
    assert same(towers.visual.trunk, classifier_of("test_vit", 160, 5).visual.trunk)
    assert same(towers.visual.head, random_towers(TIMM_VIT, seed=5).visual.head)


def test_frozen_batch_norms_take_the_statistics_of_a_checkpoint(tmp_path: Path) -> None:
    source = timm.create_model("test_resnet")
    nn.init.uniform_(source.bn1.running_mean)
    save_file(source.state_dict(), tmp_path / "resnet.safetensors")
    model = classifier_of("test_resnet", 160, 3, pretrained=str(tmp_path / "resnet.safetensors"))
    load_into(model, str(tmp_path / "resnet.safetensors"))
    assert same(model.visual.trunk, source)


def damaged(weights: dict[str, Tensor], path: Path) -> str:
    save_file(weights, path)
    return str(path)


def test_what_does_not_fit_says_what_and_changes_nothing(tmp_path: Path) -> None:
    state = random_towers(VIT).state_dict()
    wide = build(replace(VIT, vision=dict(VIT.vision) | {"width": 48})).state_dict()
    long = replace(VIT, text=dict(VIT.text) | {"width": 32})
    deeper = replace(VIT, vision=dict(VIT.vision) | {"layers": 4})
    lacking = {name: tensor for name, tensor in state.items() if ".resblocks.2." not in name}
    cases = {
        "visual.class_embedding is \\[48\\] there and \\[32\\] here": damaged(wide, tmp_path / "a.safetensors"),
        "is \\[.*32.*\\] there and \\[.*16.*\\] here": damaged(build(long).state_dict(), tmp_path / "b.safetensors"),
        "it lacks visual.transformer.resblocks.2": damaged(lacking, tmp_path / "c.safetensors"),
        "set model.vision.timm_model_name": damaged({"x": torch.zeros(1)}, tmp_path / "d.safetensors"),
        "it also has visual.transformer.resblocks.3": damaged(build(deeper).state_dict(), tmp_path / "deeper.safetensors"),
        "it lacks visual.class_embedding": damaged({"visual.x": torch.zeros(1)}, tmp_path / "e.safetensors"),
    }
    for message, source in cases.items():
        towers, before = random_towers(VIT, seed=5), random_towers(VIT, seed=5)
        with pytest.raises(ValueError, match=message):
            load_into(towers, source)
        assert same(towers, before), message
    deit, images = random_towers(TIMM), {name: tensor for name, tensor in state.items() if name.startswith("visual.")}
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.proj\.bias is \[32\] there and \[192\] here"):
        load_into(deit, damaged(small_vit().state_dict(), tmp_path / "f.safetensors"))
    with pytest.raises(ValueError, match=r"it lacks visual\.head\.proj\.weight, visual\.trunk\."):
        load_into(deit, damaged(images, tmp_path / "g.safetensors"))
    with pytest.raises(ValueError, match=r"it also has blocks\.3\."):
        load_into(small_vit(), damaged(small_vit(depth=4).state_dict(), tmp_path / "h.safetensors"))


def test_sources_that_are_none_are_refused_with_the_choices(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"pickle")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "empty").mkdir()
    cases = {
        "no_such_weights": "there are no weights 'no_such_weights'; give an artifact",
        "ViT-B-32/no_such_tag": "name them as ViT-B-32/openai",
        "timm/no_such_model": "timm has no 'no_such_model'",
        "timm/deit_tiny_patch16_224.no_such_tag": "but deit_tiny_patch16_224.fb_in1k",
        str(tmp_path / "weights.bin"): "a pickle from outside is never loaded",
        str(tmp_path / "empty"): "has neither open_clip_model.safetensors",
        str(tmp_path / "cut.safetensors"): "cannot be read as safetensors",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message):
            load_into(random_towers(CONV), source)


def test_weights_that_changed_since_the_run_was_resolved_are_refused(tmp_path: Path) -> None:
    source = damaged(random_towers(CONV).state_dict(), tmp_path / "weights.safetensors")
    digest = load_into(random_towers(CONV), source).digest
    load_into(random_towers(CONV), source, sha256=digest)
    with pytest.raises(ValueError, match="another file than the run recorded"):
        load_into(random_towers(CONV), source, sha256="0" * 64)
    artifact_of(VIT, tmp_path / "artifact")
    weights = load_file(tmp_path / "artifact" / "weights.safetensors")
    weights["logit_scale"] = torch.full((1,), math.pi)
    save_file(weights, tmp_path / "artifact" / "weights.safetensors")
    with pytest.raises(ValueError, match="another file than its artifact recorded"):
        load_into(random_towers(VIT), str(tmp_path / "artifact"))
