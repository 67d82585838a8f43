"""An artifact gives back the model that was written, and refuses to load when anything about it changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sightline.models import artifact as artifacts
from sightline.models import golden
from sightline.models.codec import decode_rgb
from sightline.models.load import load_model
from sightline.models.text import Tokenizer
from tests.models.conftest import CONV, VIT, random_towers


@pytest.fixture
def copied(artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact, tmp_path / "artifact"))


def rehash(folder: Path) -> None:
    """Make the digests fit again, as someone who tampers with an artifact would."""
    path = folder / artifacts.DESCRIPTION
    fields = json.loads(path.read_text())
    fields["files"] = {name: artifacts._sha256(folder / name) for name in fields["files"]}
    path.write_text(json.dumps(fields))


def test_the_model_comes_back(artifact: Path) -> None:
    towers, model = random_towers(CONV), load_model(str(artifact))
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    want = torch.nn.functional.normalize(towers.encode_image(CONV.preprocess.normalise(pixels)), dim=-1)
    torch.testing.assert_close(model.embed_images(pixels), want, rtol=0, atol=1e-6)
    assert model.classes == ("background", "red three", "blue one")
    assert model.revision == artifacts._sha256(artifact / artifacts.WEIGHTS)
    assert not (artifact.parent / "artifact.partial").exists()


def test_a_flipped_byte_is_noticed(copied: Path) -> None:
    data = bytearray((copied / artifacts.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copied / artifacts.WEIGHTS).write_bytes(data)
    with pytest.raises(ValueError, match="damaged or missing"):
        load_model(str(copied))


def test_other_weights_fail_the_golden_embeddings(copied: Path) -> None:
    weights = load_file(copied / artifacts.WEIGHTS)
    weights["visual.head.proj.weight"] = weights["visual.head.proj.weight"].flip(0).contiguous()
    save_file(weights, copied / artifacts.WEIGHTS)
    rehash(copied)
    with pytest.raises(ValueError, match="golden embeddings differ"):
        load_model(str(copied))


def test_another_preprocessing_fails_the_golden_embeddings(copied: Path) -> None:
    path = copied / artifacts.DESCRIPTION
    fields = json.loads(path.read_text())
    fields["model"]["preprocess"]["mean"] = [0.1, 0.9, 0.5]
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="golden embeddings differ"):
        load_model(str(copied))


def test_another_way_to_resize_is_named_as_preprocessing(copied: Path) -> None:
    path = copied / artifacts.DESCRIPTION
    fields = json.loads(path.read_text())
    fields["model"]["preprocess"]["resize"] = "squash"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="the preprocessing differs: its pixels are off by"):
        load_model(str(copied))


def test_another_decoder_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "decode_rgb", lambda data: decode_rgb(data)[::-1].copy())
    with pytest.raises(ValueError, match="the image decoder differs"):
        load_model(str(artifact))


def test_another_tokenizer_is_named(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = artifacts.get_tokenizer

    def other(name: str, context_length: int) -> Tokenizer:
        tokenizer = original(name, context_length)
        return lambda texts: tokenizer([text + " indeed" for text in texts])

    monkeypatch.setattr(artifacts, "get_tokenizer", other)
    with pytest.raises(ValueError, match="the tokenizer differs"):
        load_model(str(artifact))


def test_another_library_is_named(copied: Path) -> None:
    path = copied / artifacts.DESCRIPTION
    fields = json.loads(path.read_text())
    fields["provenance"]["versions"] = {"torch": "2.0.0", "python": "3.8.0"}
    path.write_text(json.dumps(fields))
    load_model(str(copied))  # a version alone is no difference
    kept = load_file(copied / artifacts.GOLDEN)
    save_file(kept | {"text_embeddings": kept["text_embeddings"].flip(1).contiguous()}, copied / artifacts.GOLDEN)
    rehash(copied)
    with pytest.raises(ValueError, match=r"text_embeddings .* a library differs: torch .* \(trained with 2.0.0\)"):
        load_model(str(copied))


def test_an_artifact_of_before_the_inputs_were_kept_still_loads(copied: Path) -> None:
    kept = load_file(copied / artifacts.GOLDEN)
    names = ("images", "tokens", "image_embeddings", "text_embeddings")
    save_file({name: kept[name] for name in names}, copied / artifacts.GOLDEN)
    rehash(copied)
    load_model(str(copied))


@pytest.mark.parametrize("text", ["{", "{}", '{"format": "sightline-artifact/99"}', '{"format": "sightline-artifact/1"}'])
def test_a_damaged_description_is_one_clear_error(copied: Path, text: str) -> None:
    (copied / artifacts.DESCRIPTION).write_text(text)
    with pytest.raises(ValueError, match=r"artifact\.json is damaged|has format"):
        load_model(str(copied))


def test_what_is_no_model_names_the_choices(tmp_path: Path) -> None:
    for name in (str(tmp_path), "no-such-model", str(tmp_path / "absent")):
        with pytest.raises(ValueError, match="artifact folder"):
            load_model(name)
    with pytest.raises(ValueError, match="ViT-B-32/"):
        load_model("ViT-B-32/no-such-weights")


def test_a_local_open_clip_folder_is_served_as_open_clip_does(tmp_path: Path) -> None:
    towers = random_towers(VIT)
    cfg = {"embed_dim": 16, "vision_cfg": dict(VIT.vision), "text_cfg": dict(VIT.text), "custom_text": True}
    state = towers.state_dict() | {"logit_scale": towers.state_dict()["logit_scale"].reshape(())}
    save_file(state, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": cfg, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    )
    model = load_model(str(tmp_path))
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    picture = Image.effect_noise((32, 32), 80).convert("RGB")
    want = torch.nn.functional.normalize(theirs.eval().encode_image(transform(picture)[None]), dim=-1)
    got = model.embed_images(model.preprocess.pixels(np.asarray(picture))[None])
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a dog"])
    want = torch.nn.functional.normalize(theirs.encode_text(tokens), dim=-1)
    torch.testing.assert_close(model.embed_texts(["a dog"]), want, rtol=0, atol=1e-5)
