"""What onnxruntime and transformers load is the model that was exported; skipped where these optional packages are absent."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from sightline.models.interchange import hf as to_hf
from sightline.models.interchange.export import compare, export
from sightline.models.text import END, OPEN_CLIP_BPE, get_tokenizer
from sightline.models.towers import ModelConfig
from tests.models.conftest import CONV, VIT
from tests.models.exporting import CONVNEXT, SIGMOID, SQUASH, TEXTS, TIMM_VIT, artifact_of, random_pixels, unit

ONNX = "onnx, onnxruntime, onnxscript and tokenizers are optional: pip install 'sightline[onnx]'"
HF = "transformers is optional: pip install 'sightline[hf]'"
OTHER_TEXTS = ["it's we'll I'D", "<script>!?...\t\nTabs", "ümläut Ångström", "日本語 ３ 12 dogs", "!", "😀 a smile", "can’t"]


@pytest.fixture
def onnxruntime() -> Any:
    for package in ("onnx", "onnxscript", "tokenizers"):
        pytest.importorskip(package, reason=ONNX)
    return pytest.importorskip("onnxruntime", reason=ONNX)


@pytest.fixture
def transformers() -> Any:
    return pytest.importorskip("transformers", reason=HF)


@pytest.mark.parametrize(
    "config", [VIT, CONV, pytest.param(CONVNEXT, marks=pytest.mark.campaign)], ids=["vit", "bag_of_words", "convnext"]
)
def test_onnx_gives_the_same_embeddings_at_any_batch_size(config: ModelConfig, tmp_path: Path, onnxruntime: Any) -> None:
    import onnx

    ours = artifact_of(config, tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out", "onnx")
    images, texts = (
        onnxruntime.InferenceSession(str(tmp_path / "out" / name), providers=["CPUExecutionProvider"])
        for name in ("image.onnx", "text.onnx")
    )
    for count in (1, 2, 5):
        pixels = random_pixels(config, count)
        (found,) = images.run(["embeddings"], {"pixels": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), ours.embed_images(pixels), rtol=0, atol=1e-4)
        (found,) = texts.run(["embeddings"], {"tokens": ours.tokenizer(TEXTS[:count]).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), ours.embed_texts(TEXTS[:count]), rtol=0, atol=1e-4)
    for name in ("image.onnx", "text.onnx"):
        onnx.checker.check_model(str(tmp_path / "out" / name), full_check=True)


def test_onnx_carries_preprocessing_tokenizer_and_temperature(tmp_path: Path, onnxruntime: Any) -> None:
    from tokenizers import Tokenizer

    ours = artifact_of(SIGMOID, tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out", "onnx")
    described = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert (described["size"], described["resize"], described["context_length"]) == (32, "shortest", 12)
    assert described["logit_scale"] == pytest.approx(ours.logit_scale) and described["logit_bias"] == ours.towers.logit_bias.item()
    assert tuple(described["mean"]) == SIGMOID.preprocess.mean and tuple(described["std"]) == SIGMOID.preprocess.std
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    texts = TEXTS + OTHER_TEXTS
    assert [found.ids for found in tokenizer.encode_batch(texts)] == ours.tokenizer(texts).tolist()


@pytest.mark.parametrize("config", [VIT, SQUASH], ids=["shortest", "squash"])
def test_transformers_gives_the_same_embeddings_from_pictures_and_texts(
    config: ModelConfig, tmp_path: Path, transformers: Any
) -> None:
    ours = artifact_of(config, tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out", "hf")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    pixels = random_pixels(config)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    inputs = processor(text=TEXTS + OTHER_TEXTS, images=pictures, return_tensors="pt", padding="max_length", truncation=True)
    with torch.inference_mode():
        found = model(**inputs)
    torch.testing.assert_close(found.image_embeds, ours.embed_images(pixels), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.text_embeds, ours.embed_texts(TEXTS + OTHER_TEXTS), rtol=0, atol=1e-6)
    logits = ours.logit_scale * ours.embed_images(pixels) @ ours.embed_texts(TEXTS + OTHER_TEXTS).T
    torch.testing.assert_close(found.logits_per_image, logits, rtol=0, atol=1e-5 * ours.logit_scale)


@pytest.mark.parametrize("config", [VIT, SQUASH], ids=["shortest", "squash"])
def test_transformers_makes_the_same_pixels(config: ModelConfig, tmp_path: Path, transformers: Any) -> None:
    """On a picture whose scaled sides and margins are whole numbers, as in the tests of the other libraries."""
    artifact_of(config, tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out", "hf")
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
    rgb_HWC = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    found = processor(images=Image.fromarray(rgb_HWC), return_tensors="pt")["pixel_values"]
    ours = config.preprocess.normalise(config.preprocess.pixels(rgb_HWC)[None])
    torch.testing.assert_close(found, ours, rtol=0, atol=1.01 / 255 / min(config.preprocess.std))


def test_transformers_keeps_quickgelu(tmp_path: Path, transformers: Any) -> None:
    torch.manual_seed(0)
    towers = open_clip.CustomTextCLIP(
        embed_dim=16, vision_cfg=dict(VIT.vision), text_cfg=dict(VIT.text), quick_gelu=True, nonscalar_logit_scale=True
    ).eval()
    to_hf.write(VIT, towers, tmp_path)
    image, text = compare(VIT, towers, tmp_path, "hf", random_pixels(VIT), get_tokenizer(VIT.tokenizer, 12)(TEXTS))
    assert image <= 1e-6 and text is not None and text <= 1e-6


def test_transformers_loads_the_timm_folder_too(tmp_path: Path, transformers: Any) -> None:
    config = replace(TIMM_VIT, text=CONV.text)
    ours = artifact_of(config, tmp_path / "artifact")
    export(tmp_path / "artifact", tmp_path / "out", "timm")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    pixels = random_pixels(config)
    with torch.inference_mode():
        found = model(config.preprocess.normalise(pixels)).logits
    torch.testing.assert_close(unit(found), ours.embed_images(pixels), rtol=0, atol=1e-6)


def test_both_tokenizer_files_agree_with_open_clip_on_real_captions(
    tmp_path: Path, shared_data: Path, onnxruntime: Any, transformers: Any
) -> None:
    from tokenizers import Tokenizer

    config = replace(VIT, text=dict(VIT.text) | {"context_length": 40})
    artifact_of(config, tmp_path / "artifact")
    for target in ("onnx", "hf"):
        export(tmp_path / "artifact", tmp_path / target, target)
    captions = []
    for name in ("flickr8k", "vi_captions"):
        with (shared_data / name / "captions.csv").open(newline="") as file:
            captions += [row["caption"] for row in csv.DictReader(file)][:3000]
    wanted = get_tokenizer(OPEN_CLIP_BPE, 40)(captions)
    by_onnx = Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json")).encode_batch(captions)
    assert [found.ids for found in by_onnx] == wanted.tolist()
    tokenizer = transformers.CLIPProcessor.from_pretrained(tmp_path / "hf").tokenizer
    by_hf = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert by_hf.shape == wanted.shape
    assert torch.equal(torch.where(wanted == 0, END, wanted), by_hf)  # they pad with the end token
