"""What open_clip and timm load is the model that was exported, and what they cannot hold is refused with what can be done."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sightline.models.interchange import export as interchange
from sightline.models.interchange import open_clip as to_open_clip
from sightline.models.interchange import timm as to_timm
from sightline.models.interchange.export import compare, export
from sightline.models.load import load_model
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig
from tests.models.conftest import CONV, VIT, random_towers
from tests.models.exporting import CONVNEXT, SIGMOID, SQUASH, TEXTS, TIMM_VIT, artifact_of, random_pixels, unit


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Where a test's artifact goes."""
    return tmp_path / "artifact"


@pytest.mark.parametrize(
    "config", [VIT, SIGMOID, SQUASH, TIMM_VIT, CONVNEXT], ids=["vit", "sigmoid", "squash", "timm_vit", "convnext"]
)
def test_open_clip_gives_the_same_embeddings_from_its_own_loader(config: ModelConfig, written: Path, tmp_path: Path) -> None:
    ours = artifact_of(config, written)
    exported = export(written, tmp_path / "out", "open_clip")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'out'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")
    pixels, theirs = random_pixels(config), theirs.eval()
    assert torch.equal(tokenizer(TEXTS), ours.tokenizer(TEXTS))
    inputs = torch.stack([transform(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in pixels])
    with torch.inference_mode():
        image_BD, text_ND = theirs.encode_image(inputs, normalize=True), theirs.encode_text(tokenizer(TEXTS), normalize=True)
    torch.testing.assert_close(image_BD, ours.embed_images(pixels), rtol=0, atol=1e-6)
    torch.testing.assert_close(text_ND, ours.embed_texts(TEXTS), rtol=0, atol=1e-6)
    assert theirs.logit_scale.shape == () and theirs.logit_scale.item() == ours.towers.logit_scale.item()
    assert (theirs.logit_bias is None) == (config.init_logit_bias is None)
    assert exported.image_difference <= 1e-6 and exported.text_difference is not None and exported.text_difference <= 1e-6


def test_a_round_trip_through_open_clip_is_lossless(written: Path, tmp_path: Path) -> None:
    before = artifact_of(SIGMOID, written)
    export(written, tmp_path / "out", "open_clip")
    after = load_model(str(tmp_path / "out"))
    for name, tensor in before.towers.state_dict().items():
        assert torch.equal(after.towers.state_dict()[name].reshape(tensor.shape), tensor), name
    pixels = random_pixels(SIGMOID)
    assert torch.equal(after.embed_images(pixels), before.embed_images(pixels))
    assert torch.equal(after.embed_texts(TEXTS), before.embed_texts(TEXTS))
    assert after.preprocess == before.preprocess
    assert (after.name, after.templates, after.classes) == (before.name, before.templates, before.classes)


def test_what_was_changed_after_its_export_is_no_longer_called_the_artifact(written: Path, tmp_path: Path) -> None:
    artifact_of(VIT, written)
    export(written, tmp_path / "out", "open_clip")
    weights = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    save_file(weights | {"logit_scale": torch.tensor(1.0)}, tmp_path / "out" / "open_clip_model.safetensors")
    changed = load_model(str(tmp_path / "out"))
    assert (changed.name, changed.classes) == ("out", ())
    (tmp_path / "out" / "sightline.json").write_text("{")
    with pytest.raises(ValueError, match=r"sightline\.json is damaged"):
        load_model(str(tmp_path / "out"))


def test_the_tokenizer_of_the_artifact_goes_with_it_whatever_the_architecture_would_choose(written: Path, tmp_path: Path) -> None:
    config = replace(
        VIT, text=dict(VIT.text) | {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"clean": "whitespace"}}
    )
    ours = artifact_of(config, written)
    export(written, tmp_path / "out", "open_clip")
    assert torch.equal(open_clip.get_tokenizer(f"local-dir:{tmp_path / 'out'}")(["A Dog"]), ours.tokenizer(["A Dog"]))


@pytest.mark.parametrize("config", [VIT, TIMM_VIT, CONVNEXT], ids=["vit", "timm_vit", "convnext"])
def test_timm_gives_the_same_image_embeddings_from_its_own_loaders(config: ModelConfig, written: Path, tmp_path: Path) -> None:
    ours = artifact_of(config, written)
    exported = export(written, tmp_path / "out", "timm")
    pixels = random_pixels(config)
    inputs, wanted = config.preprocess.normalise(pixels), ours.embed_images(pixels)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    arguments = described["model_args"] | {"num_classes": described["num_classes"]}
    by_file = timm.create_model(
        described["architecture"], checkpoint_path=tmp_path / "out" / "model.safetensors", **arguments
    ).eval()
    with torch.inference_mode():
        for model in (theirs, by_file):
            torch.testing.assert_close(unit(model(inputs)), wanted, rtol=0, atol=1e-6)
    assert exported.text_difference is None
    assert set(exported.files) == {"config.json", "model.safetensors"}


def test_timm_without_a_classifier_gives_the_features_of_the_trunk(written: Path, tmp_path: Path) -> None:
    ours = artifact_of(TIMM_VIT, written)
    export(written, tmp_path / "out", "timm")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=0).eval()
    inputs = TIMM_VIT.preprocess.normalise(random_pixels(TIMM_VIT))
    with torch.inference_mode():
        torch.testing.assert_close(theirs(inputs), ours.towers.visual.trunk(inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [VIT, SQUASH], ids=["shortest", "squash"])
def test_preprocessing_travels_and_agrees_within_a_grey_level(config: ModelConfig, written: Path, tmp_path: Path) -> None:
    """On a picture whose scaled sides and margins are whole numbers: libraries round the others to one side or the other."""
    artifact_of(config, written)
    export(written, tmp_path / "open_clip", "open_clip")
    export(written, tmp_path / "timm", "timm")
    _, _, by_open_clip = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'open_clip'}")
    model = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    by_timm = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    rgb_HWC = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    ours = config.preprocess.normalise(config.preprocess.pixels(rgb_HWC)[None])[0]
    grey_level = 1.01 / 255 / min(config.preprocess.std)
    for transform in (by_open_clip, by_timm):
        torch.testing.assert_close(transform(Image.fromarray(rgb_HWC)), ours, rtol=0, atol=grey_level)


@pytest.mark.parametrize("target", ["open_clip", "timm"])
def test_quickgelu_is_kept(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    towers = open_clip.CustomTextCLIP(
        embed_dim=16, vision_cfg=dict(VIT.vision), text_cfg=dict(VIT.text), quick_gelu=True, nonscalar_logit_scale=True
    ).eval()
    module = {"open_clip": to_open_clip, "timm": to_timm}[target]
    module.write(VIT, towers, tmp_path)
    image, _ = compare(VIT, towers, tmp_path, target, random_pixels(VIT), torch.zeros(1, 12, dtype=torch.int64))
    assert image <= 1e-6


REFUSED = {
    "a bag of words in open_clip": (CONV, "open_clip", "bag of words; this artifact can be exported --to onnx"),
    "a tower of ours in open_clip": (replace(CONV, text=VIT.text), "open_clip", "sightline_conv is not among timm's own"),
    "a tower of ours in timm": (CONV, "timm", "sightline_conv is not among timm's own models; .* --to onnx"),
    "a timm tower in transformers": (TIMM_VIT, "hf", "timm's test_vit; .* --to open_clip or timm or onnx"),
    "a logit bias in transformers": (SIGMOID, "hf", "logit bias"),
    "layer scale in timm": (
        replace(VIT, vision=dict(VIT.vision) | {"ls_init_value": 0.1}),
        "timm",
        "image tower sets ls_init_value",
    ),
    "no causal mask in transformers": (
        replace(VIT, text=dict(VIT.text) | {"no_causal_mask": True}),
        "hf",
        "text tower sets no_causal",
    ),
    "CLIP's ResNet in timm": (replace(VIT, vision={"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}), "timm", "CLIP's ResNet"),
    "an MLP as projection in timm": (replace(TIMM_VIT, vision=dict(TIMM_VIT.vision) | {"timm_proj": "mlp"}), "timm", "MLP"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_library_cannot_hold_is_refused_with_what_can(case: str) -> None:
    config, target, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        interchange.refuse(config, target)


def test_a_setting_with_its_default_value_is_no_reason_to_refuse() -> None:
    spelled_out = replace(VIT, vision=dict(VIT.vision) | {"ls_init_value": None, "pool_type": "tok", "patch_dropout": 0.5})
    assert to_timm.refusal(spelled_out) is None


def test_embeddings_that_differ_leave_nothing_behind(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact_of(VIT, written)
    monkeypatch.setattr(to_open_clip, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="open_clip gives image embeddings that are off by"):
        export(written, tmp_path / "out", "open_clip")
    assert {path.name for path in tmp_path.iterdir()} == {"artifact"}


def test_bad_requests_are_refused_before_any_work(written: Path, tmp_path: Path) -> None:
    artifact_of(VIT, written)
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="choose open_clip, timm, onnx, hf"):
        export(written, tmp_path / "out", "tensorflow")
    with pytest.raises(FileExistsError, match="name a new folder"):
        export(written, tmp_path / "there", "open_clip")
    with pytest.raises(FileNotFoundError, match="is no artifact"):
        export(tmp_path / "there", tmp_path / "out", "open_clip")


@pytest.mark.parametrize(("target", "package"), [("onnx", "onnxscript"), ("hf", "transformers")])
def test_an_absent_library_names_its_extra(
    target: str, package: str, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact_of(VIT, written)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "sightline\[{target}\]"'):
        export(written, tmp_path / "out", target)
    assert {path.name for path in tmp_path.iterdir()} == {"artifact"}


def test_the_folder_of_a_run_stands_for_its_artifact_and_the_origin_is_written_down(written: Path, tmp_path: Path) -> None:
    artifact_of(VIT, written)
    run = tmp_path / "run"
    shutil.copytree(written, run / "artifact")
    exported = export(run, tmp_path / "deep" / "out", "open_clip")
    origin = json.loads((tmp_path / "deep" / "out" / "sightline.json").read_text())
    assert origin["artifact"] == json.loads((written / "artifact.json").read_text())
    assert origin["files"] == exported.files
    assert exported.load.endswith(f"'local-dir:{tmp_path / 'deep' / 'out'}')")


def test_a_classifier_is_a_timm_model_with_its_class_names(tmp_path: Path) -> None:
    config = ModelConfig(
        embed_dim=0,
        vision={"timm_model_name": "test_vit"},
        text={},
        preprocess=Preprocess(size=160),
        classes=("cat", "dog", "horse"),
    )
    classifier = random_towers(config)
    torch.nn.init.normal_(classifier.visual.head.proj.weight)
    torch.nn.init.normal_(classifier.visual.head.proj.bias)
    interchange.refuse(config, "timm")
    to_timm.write(config, classifier, tmp_path)
    inputs = config.preprocess.normalise(random_pixels(config))
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(inputs), classifier(inputs), rtol=0, atol=1e-6)
    assert theirs.pretrained_cfg["label_names"] == list(config.classes)
    for target in ("open_clip", "onnx", "hf"):
        with pytest.raises(ValueError, match=r"classifier.*can be exported --to timm"):
            interchange.refuse(config, target)
    with pytest.raises(ValueError, match=r"hidden layer, .* one linear layer$"):
        interchange.refuse(replace(config, embed_dim=8), "timm")
