"""The dense readout against the model's own embedding and against the formulas written out."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.models.dense import DEFAULT, READOUTS, Readout, dense_features, mix, read
from sightline.models.load import load_model
from sightline.models.preprocess import Preprocess
from sightline.models.refine import refine
from sightline.models.segment import SegmentOptions, segment
from sightline.models.towers import ModelConfig
from tests.models.conftest import CONV, VIT, random_towers


def test_a_mean_pooled_map_averages_to_the_images_embedding() -> None:
    towers, image = random_towers(CONV), torch.randn(2, 3, 32, 32)
    dense = dense_features(towers, image)
    assert dense.shape == (2, 16, 8, 8)
    torch.testing.assert_close(dense.mean((2, 3)), towers.encode_image(image), rtol=0, atol=1e-6)


def timm_tower(name: str, size: int, pool: str = "avg", proj: str = "linear") -> ModelConfig:
    vision = {"timm_model_name": name, "timm_pool": pool, "timm_proj": proj, "image_size": size}
    return replace(CONV, vision=vision, preprocess=Preprocess(size=size))


RESNET = replace(CONV, vision={"layers": (1, 1, 1, 1), "width": 16, "head_width": 16, "image_size": 64}, preprocess=Preprocess(64))
AVERAGED = replace(VIT, vision={**VIT.vision, "pool_type": "avg", "ls_init_value": 0.1})
NORM_AFTER = replace(AVERAGED, vision={**AVERAGED.vision, "final_ln_after_pool": True, "no_ln_pre": True})
TRANSFORMERS = {
    "open_clip, class token": (VIT, 4),
    "open_clip, mean": (AVERAGED, 4),
    "open_clip, mean before the norm": (NORM_AFTER, 4),
    "timm, class token": (timm_tower("test_vit", 160, "token"), 10),
    "timm, mean": (timm_tower("test_vit4", 160), 10),
    "timm, attention pooling": (timm_tower("test_vit3", 160, "map", "mlp"), 10),
}
MAPS = {
    "ConvNeXt": (timm_tower("test_convnext", 96), 3),
    "Swin": (timm_tower("swin_tiny_patch4_window7_224", 224), 7),
    "ResNet of timm": (timm_tower("test_resnet", 96), 3),
    "ResNet of CLIP": (RESNET, 2),
    "its attention pooling in timm": (timm_tower("resnet10t", 64, "rot_attn", ""), 2),
    "EVA": (timm_tower("eva02_tiny_patch14_224", 224), 16),
    "ours": (CONV, 8),
}


@pytest.mark.parametrize("tower", [*TRANSFORMERS, *MAPS])
def test_the_unmodified_path_is_the_models_own(tower: str) -> None:
    config, grid = (TRANSFORMERS | MAPS)[tower]
    towers, image = random_towers(config), torch.randn(2, 3, config.preprocess.size, config.preprocess.size)
    with torch.inference_mode():
        found = read(towers, image, "clip")
        want = F.normalize(towers.encode_image(image), dim=-1)
    assert found.map_BDhw.shape == (2, 16, grid, grid)
    torch.testing.assert_close(F.normalize(found.pooled_BD, dim=-1), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tower", TRANSFORMERS)
def test_every_readout_reads_every_transformer_its_own_way(tower: str) -> None:
    config, _ = TRANSFORMERS[tower]
    towers, image = random_towers(config), torch.randn(1, 3, config.preprocess.size, config.preprocess.size)
    with torch.inference_mode():
        maps = {name: dense_features(towers, image, name) for name in READOUTS}
        assert torch.equal(dense_features(towers, image), maps[DEFAULT])
    for one, other in combinations(maps, 2):
        assert not torch.equal(maps[one], maps[other]), (one, other)


def test_a_picture_that_is_the_same_everywhere_is_read_as_itself() -> None:
    """What a place is read as: on a tower without positions, every place of an even picture is the picture."""
    towers = random_towers(MAPS["ResNet of timm"][0])
    with torch.inference_mode():
        found = read(towers, torch.full((1, 3, 256, 256), 0.3))
    torch.testing.assert_close(found.map_BDhw[0, :, 4, 4], found.map_BDhw[0, :, 3, 4], rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["q-k", "q-q", "k-k", "v-v", "q-q+k-k"])
@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_attention_is_its_formula(attention: Any, sigma: float) -> None:
    height, width, heads, dim = 2, 3, 2, 4
    q, k, v = torch.randn(3, 1, heads, 1 + height * width, dim).unbind()
    got = mix(q, k, v, Readout(attention, neighbours=sigma), (height, width), prefix=1)
    named = {"q": q[0], "k": k[0], "v": v[0]}
    for head in range(heads):
        for i in range(1 + height * width):
            weight = torch.zeros(1 + height * width)
            for pair in attention.split("+"):
                logits = []
                for j in range(1 + height * width):
                    logit = float(named[pair[0]][head, i] @ named[pair[2]][head, j]) / dim**0.5
                    if i and j and sigma:
                        (a, b), (c, d) = divmod(i - 1, width), divmod(j - 1, width)
                        logit += float(np.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * sigma**2)))
                    logits.append(logit)
                weight += torch.softmax(torch.tensor(logits), 0)
            torch.testing.assert_close(got[0, i, head * dim : (head + 1) * dim], weight @ v[0, head], rtol=0, atol=1e-5)


def test_the_value_path_keeps_each_place_to_itself() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind()
    torch.testing.assert_close(mix(q, k, v, READOUTS["maskclip"], (2, 2), 1)[0, 3], v[0, :, 3].flatten())


def test_what_cannot_be_read_is_refused() -> None:
    coca = replace(VIT, vision={**VIT.vision, "attentional_pool": True, "attn_pooler_queries": 2, "attn_pooler_heads": 2})
    bound = timm_tower("resnet10t", 224, "abs_attn", "")
    for config in (coca, bound):
        with pytest.raises(ValueError, match="cannot be read densely: its pooling"):
            dense_features(random_towers(config), torch.randn(1, 3, config.preprocess.size, config.preprocess.size))
    with pytest.raises(ValueError, match="where its tokens lie is not known"):
        dense_features(random_towers(timm_tower("gmixer_12_224", 224)), torch.randn(1, 3, 224, 224))
    with pytest.raises(ValueError, match="ConvTower has no attention that readout 'naclip' could replace"):
        dense_features(random_towers(CONV), torch.randn(1, 3, 32, 32), "naclip")
    with pytest.raises(ValueError, match="no readout 'nacl'; choose clip, maskclip"):
        dense_features(random_towers(VIT), torch.randn(1, 3, 32, 32), "nacl")


def plain_refine(scores: Tensor, image: Tensor, dilation: int, sigma: float) -> Tensor:
    """One step at one distance, pixel by pixel."""
    out = torch.zeros_like(scores)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            places = [
                (min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1))
                for dy in (-dilation, 0, dilation)
                for dx in (-dilation, 0, dilation)
                if dy or dx
            ]
            weight = torch.tensor([float(-((image[:, b, a] - image[:, y, x]) ** 2).sum() / (2 * sigma**2)) for b, a in places])
            weight = torch.softmax(weight, 0)
            out[:, y, x] = sum(w * scores[:, b, a] for w, (b, a) in zip(weight, places, strict=True))
    return out


def test_refinement_is_its_formula() -> None:
    scores, image = torch.rand(2, 5, 6), torch.rand(3, 5, 6)
    want = plain_refine(scores, image, 2, 0.3)
    torch.testing.assert_close(refine(scores, image, 1, (2,), 0.3), want, rtol=0, atol=1e-5)


def test_refinement_keeps_to_regions_of_one_colour() -> None:
    image = torch.zeros(3, 12, 12)
    image[:, :, 6:] = 1.0
    scores = torch.zeros(1, 12, 12)
    scores[0, 4, 2] = 1.0
    refined = refine(scores, image)
    assert refined[0, :, :6].sum() > 0.5 and refined[0, :, 6:].max() < 1e-6


def test_segmentation_has_the_images_size_and_the_labels_numbers(artifact: object) -> None:
    model = load_model(str(artifact))
    image = np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8)
    found = segment(model, image, ["red three", "blue one", "a dog"])
    assert found.label_map_HW.shape == (50, 37) and found.label_map_HW.dtype == np.uint8
    assert found.scores_LHW.shape == (3, 50, 37)
    assert set(np.unique(found.label_map_HW)) <= {0, 1, 2, 3}
    everything = segment(model, image, ["red three"], SegmentOptions(threshold=-1e9))
    assert (everything.label_map_HW == 1).all()
    with pytest.raises(ValueError, match="label list is empty"):
        segment(model, image, [])
    with pytest.raises(ValueError, match="at most 255"):
        segment(model, image, ["x"] * 256)
