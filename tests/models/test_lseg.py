"""The dense head: labels are compared one by one, images and masks move together, and the loss is the plain one."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sightline.models.augment import Augment, augment_pair
from sightline.models.clip import Clip
from sightline.models.dense import dense_features
from sightline.models.losses import Share
from sightline.models.lseg import DenseHead, place_logits, taps
from sightline.models.objectives import Segmentation, Targets
from sightline.models.segment import COMMON_STUFF, SegmentOptions, everywhere, segment, starts
from sightline.models.text import get_tokenizer
from sightline.models.towers import ModelConfig
from tests.models.conftest import CONV, VIT, random_towers
from tests.models.test_dense import timm_tower

HEAD = DenseHead(taps=(0, 1), widths=(16, 8), blocks=1, pixels=True, background=True)
TOWERS = {
    "ours": (CONV, (0, 1), 16),
    "open_clip's ViT": (VIT, (0, 2), 4),
    "timm's ViT at another size": (timm_tower("test_vit", 96, "token"), (1, 5), 6),
    "ConvNeXt": (timm_tower("test_convnext", 96), (1, 3), 12),
}


def model_of(config: ModelConfig, **changes: Any) -> Clip:
    config = replace(config, dense=replace(HEAD, **changes))
    tokenizer = get_tokenizer(config.tokenizer, config.context_length)
    return Clip(random_towers(config), config.preprocess, tokenizer, "random", "none", classes=("cat", "dog"))


@pytest.mark.parametrize("tower", TOWERS)
def test_a_head_reads_any_tower_and_gives_unit_places(tower: str) -> None:
    config, which, grid = TOWERS[tower]
    model = model_of(config, taps=which)
    size = config.preprocess.size
    with torch.inference_mode():
        places = model.towers(torch.randn(2, 3, size, size))
        assert model.towers.encode_image(torch.randn(2, 3, size, size)).shape == (2, 16)
    assert places.shape == (2, 17, 2 * grid, 2 * grid)
    torch.testing.assert_close(places[:, :16].norm(dim=1), torch.ones(2, 2 * grid, 2 * grid))


def test_kept_maps_are_worth_the_image() -> None:
    model = model_of(CONV, taps=(1,), pixels=False)
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        kept = torch.cat(taps(model.towers.visual.trunk, image, (1,)), dim=1)
        assert torch.equal(model.towers(kept), model.towers(image))


def test_labels_may_be_reordered_added_and_left_out() -> None:
    model, image = model_of(CONV), np.random.default_rng(0).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    options = SegmentOptions(background="none", refine_steps=0)
    names = ["cat", "dog", "bird", "tree"]
    found = segment(model, image, names, options)
    turned = segment(model, image, names[::-1], options)
    assert found.label_map_HW.shape == (40, 36)
    np.testing.assert_array_equal(turned.label_map_HW, 5 - found.label_map_HW)
    fewer = segment(model, image, ["bird", "cat"], options).label_map_HW
    keeps = np.isin(found.label_map_HW, (1, 3))  # where one of the two was best of all, it is best of the two
    np.testing.assert_array_equal(fewer[keeps], np.where(found.label_map_HW == 3, 1, 2)[keeps])


def test_a_synonym_is_another_name_of_the_label() -> None:
    model, image = model_of(CONV), np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    options = SegmentOptions(background="none", refine_steps=0)
    apart = segment(model, image, ["cat", "dog", "lorry"], options).label_map_HW
    joined = segment(model, image, ["cat|lorry", "dog"], options).label_map_HW
    np.testing.assert_array_equal(joined, np.array([0, 1, 2, 1])[apart])


def test_the_learned_background_is_no_label_and_can_be_left_out() -> None:
    model = model_of(CONV)
    image = np.zeros((32, 32, 3), np.uint8)
    with torch.no_grad():
        model.towers.decoder.out.bias[16] = 1e4
    assert not segment(model, image, ["cat"]).label_map_HW.any()
    assert segment(model, image, ["cat"], SegmentOptions(background="none")).label_map_HW.all()
    with pytest.raises(ValueError, match="has no background 'learned'"):
        segment(model_of(CONV, background=False), image, ["cat"], SegmentOptions(background="learned"))
    with pytest.raises(ValueError, match="has no readout 'naclip'"):
        segment(model, image, ["cat"], SegmentOptions(readout="naclip"))


def test_windows_cover_the_image_and_are_averaged() -> None:
    """A score that is the window's own brightness: everywhere, the mean over the windows that a pixel lies in."""
    assert starts(32, 32, 0.5) == [0] and starts(80, 32, 0.5) == [0, 16, 32, 48] and starts(81, 32, 1.0) == [0, 24, 49]
    model = model_of(CONV)
    image = torch.zeros(3, 32, 48, dtype=torch.uint8)
    image[:, :, 24:] = 200

    def brightness(windows: Tensor) -> Tensor:
        return windows.float().mean((1, 2, 3)).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)

    found = everywhere(image, model, SegmentOptions(sizes=(32,), stride=0.5), brightness)
    left, right = 200 * 8 / 32, 200 * 24 / 32
    want = torch.tensor([left] * 16 + [(left + right) / 2] * 16 + [right] * 16).expand(1, 32, 48)
    torch.testing.assert_close(found, want)
    assert everywhere(image, model, SegmentOptions(sizes=(32, 64)), brightness).shape == (1, 64, 96)
    for wrong, message in ((SegmentOptions(sizes=(31,)), "below the windows"), (SegmentOptions(sizes=(32,), stride=0), "stride")):
        with pytest.raises(ValueError, match=message):
            everywhere(image, model, wrong, brightness)


def test_words_of_the_background_take_pixels_from_labels() -> None:
    tokenizer = get_tokenizer(CONV.tokenizer, CONV.context_length)
    model = Clip(random_towers(CONV), CONV.preprocess, tokenizer, "random", "none")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = segment(model, image, ["cat"], SegmentOptions(background="words", refine_steps=0)).label_map_HW
    weights_ND = model.classifier(["cat", *COMMON_STUFF])
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.inference_mode():
        features_Dhw = dense_features(model.towers, model.preprocess.normalise(pixels))[0]
    scores = torch.einsum("nd,dhw->nhw", weights_ND - weights_ND.mean(0), features_Dhw)
    rows = torch.stack([scores[0], scores[1:].amax(0)])
    want = F.interpolate(rows[None], size=(32, 32), mode="bilinear", align_corners=False)[0].argmax(0) == 0
    np.testing.assert_array_equal(found, want.numpy())
    assert segment(model, image, ["cat"], SegmentOptions(background="none", refine_steps=0)).label_map_HW.all()


def test_images_and_masks_move_together() -> None:
    """Every pixel's colour says its class, so whatever is done to both, they still agree."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 4, (3, 4)).astype(np.uint8)
    mask = coarse.repeat(16, 0).repeat(16, 1)
    image = np.stack([mask * 60] * 3, axis=-1)
    options = Augment(crop_area=(0.4, 1.0), flip=0.5, shift=5)
    outcomes = []
    for seed in range(20):
        pixels, moved = augment_pair(image, mask, options, 40, np.random.default_rng(seed))
        again = augment_pair(image, mask, options, 40, np.random.default_rng(seed))
        assert torch.equal(pixels, again[0]) and torch.equal(moved, again[1])
        assert pixels.shape == (3, 40, 40) and moved.shape == (40, 40)
        agree = (pixels[0].float() / 60).round() == moved
        assert agree.float().mean() > 0.75  # bicubic edges are between two classes
        outcomes.append(moved)
    assert len({outcome.numpy().tobytes() for outcome in outcomes}) == 20


WORDS = (("red", "blue"), ("one", "two"))
NAMES = ("red one", "red two", "blue one")
LEFT_OUT = {"red one": "", "red two": "blue", "blue one": "two"}  # no name has both "blue" and "two"


def plain_loss(places: Tensor, truth: Tensor, label_KD: Tensor, scale: float, objective: Segmentation) -> float:
    """Pixel by pixel."""
    rows = []
    for place, mask in zip(places, truth, strict=True):
        lost, weights, words = 0.0, 0.0, []
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                number = int(mask[y, x])
                if number == 255:
                    continue
                logits = [scale * float(place[:4, y, x] @ label) for label in label_KD] + [float(place[4, y, x])]
                classes = [*logits[:3], logits[-1]]
                weight = objective.background_weight if number == 3 else 1.0
                lost += weight * (log(sum(exp(value) for value in classes)) - classes[number])
                weights += weight
                if number < 3:
                    for group in WORDS:
                        word = next(word for word in group if word in NAMES[number])
                        value = {other: logits[3 + i] for i, other in enumerate(w for some in WORDS for w in some)}
                        allowed = [other for other in group if other != LEFT_OUT[NAMES[number]]]
                        words.append(log(sum(exp(value[other]) for other in allowed)) - value[word])
        rows.append(lost / weights + objective.word_weight * (sum(words) / len(words) if words else 0.0))
    return sum(rows) / len(rows)


class Given(torch.nn.Module):
    """Towers whose places are given."""

    def __init__(self, places: Tensor, label_KD: Tensor) -> None:
        super().__init__()
        self.places, self.pixel_scale = torch.nn.Parameter(places), torch.nn.Parameter(torch.tensor([1.2]))
        self.register_buffer("label_KD", label_KD)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.places[inputs[:, 0, 0, 0].long()]


def test_the_loss_is_the_plain_one_and_does_not_depend_on_parts() -> None:
    torch.manual_seed(0)
    label_KD = F.normalize(torch.randn(7, 4), dim=1)
    places = torch.cat([F.normalize(torch.randn(3, 4, 4, 4), dim=1), torch.randn(3, 1, 4, 4)], dim=1)
    truth = torch.tensor([0, 1, 2, 3, 255])[torch.randint(0, 5, (3, 8, 8))].to(torch.uint8)
    objective = Segmentation(loss_stride=2, background_weight=0.3, word_groups=WORDS, word_weight=0.7)
    want = plain_loss(places, truth[:, 1::2, 1::2], label_KD, exp(1.2), objective)
    gradients = []
    for at_once in (None, 1, 2):
        towers = Given(places.clone(), label_KD)
        backward = objective.prepare(lambda texts: torch.zeros(0), Share((3,)), lambda: NAMES, at_once)
        inputs = torch.arange(3.0).view(3, 1, 1, 1)
        loss = backward(towers, inputs, Targets(["", "", ""], masks_bHW=truth), lambda first: None)
        assert float(loss) == pytest.approx(want, rel=1e-5)
        assert towers.places.grad is not None
        gradients.append(towers.places.grad)
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other)


def test_a_row_without_a_counted_pixel_costs_nothing() -> None:
    places, label_KD = F.normalize(torch.randn(1, 4, 4, 4), dim=1), F.normalize(torch.randn(2, 4), dim=1)
    towers = Given(places, label_KD)
    backward = Segmentation().prepare(lambda texts: torch.zeros(0), Share((1,)), lambda: ("a", "b"), None)
    truth = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    assert float(backward(towers, torch.zeros(1, 1, 1, 1), Targets([""], masks_bHW=truth), lambda first: None)) == 0
    assert place_logits(places, label_KD, torch.ones(1)).shape == (1, 2, 4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"taps": (0, 3)}, "maps 0 to 2"), ({"taps": ()}, "maps 0 to 2"), ({"widths": (12,)}, "multiples of 8")],
)
def test_a_head_that_cannot_be_built_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of(CONV, **changes)
