"""The dense readout against the model's own embedding and against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sightline.models.dense import NEIGHBOUR_SIGMA, dense_features, neighbour_attention
from sightline.models.load import load_model
from sightline.models.refine import refine
from sightline.models.segment import SegmentOptions, segment
from sightline.models.towers import ModelConfig
from tests.models.conftest import CONV, TIMM, VIT, random_towers


def test_a_mean_pooled_map_averages_to_the_images_embedding() -> None:
    towers, image = random_towers(CONV), torch.randn(2, 3, 32, 32)
    dense = dense_features(towers, image)
    assert dense.shape == (2, 16, 8, 8)
    torch.testing.assert_close(dense.mean((2, 3)), towers.encode_image(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("config", "grid"), [(VIT, 4), (TIMM, 14)], ids=["open_clip", "timm"])
def test_transformers_are_read_at_every_patch(config: ModelConfig, grid: int) -> None:
    towers = random_towers(config)
    dense = dense_features(towers, torch.randn(2, 3, config.preprocess.size, config.preprocess.size))
    assert dense.shape == (2, 16, grid, grid)
    assert torch.isfinite(dense).all()


def test_neighbour_attention_is_its_formula() -> None:
    height, width, heads, dim = 2, 3, 2, 4
    qkv = torch.randn(1, 1 + height * width, 3 * heads * dim)
    got = neighbour_attention(qkv, heads, (height, width))
    _, key, value = qkv[0].reshape(-1, 3, heads, dim).unbind(1)
    for head in range(heads):
        for i in range(1 + height * width):
            logits = []
            for j in range(1 + height * width):
                logit = float(key[i, head] @ key[j, head]) / dim**0.5
                if i and j:
                    (a, b), (c, d) = divmod(i - 1, width), divmod(j - 1, width)
                    logit += float(np.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * NEIGHBOUR_SIGMA**2)))
                logits.append(logit)
            weight = torch.softmax(torch.tensor(logits), 0)
            torch.testing.assert_close(got[0, i, head * dim : (head + 1) * dim], weight @ value[:, head], rtol=0, atol=1e-5)


def test_a_tower_that_cannot_be_read_is_refused() -> None:
    config = ModelConfig(
        embed_dim=16,
        vision={"timm_model_name": "resnet18", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
        text=CONV.text,
        preprocess=CONV.preprocess,
    )
    with pytest.raises(ValueError, match="cannot be read densely; segmentation works with"):
        dense_features(random_towers(config), torch.randn(1, 3, 32, 32))


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
