"""Preprocessing against Pillow, and augmentation as a pure function of its generator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from sightline.models.augment import Augment, augment, augment_features, crop_box, shifted, thinned, without
from sightline.models.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess


def photo(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("height", "width"), [(96, 160), (160, 96), (64, 64), (40, 30), (33, 200), (375, 500), (500, 333), (281, 500), (77, 301)]
)
def test_shortest_side_and_centre_crop_as_torchvision_does_them(height: int, width: int) -> None:
    """On a Pillow image, as open_clip's transform gets it; ours resamples by torch, a grey level or two off."""
    rgb = photo(height, width)
    theirs = Compose([Resize(64, InterpolationMode.BICUBIC), CenterCrop(64), PILToTensor()])(Image.fromarray(rgb))
    assert (Preprocess(size=64).pixels(rgb).int() - theirs.int()).abs().max() <= 2


def test_of_a_line_the_middle_stands_for_the_whole() -> None:
    line_HWC = np.random.default_rng(1).integers(0, 256, (1, 200_000, 3), dtype=np.uint8)  # 30 GB at 224 pixels of height
    middle_HWC = line_HWC[:, 100_000 - 16 : 100_000 + 16]
    for turned in (lambda image: image, lambda image: image.swapaxes(0, 1)):
        pixels = Preprocess(size=224).pixels(turned(line_HWC))
        torch.testing.assert_close(pixels, Preprocess(size=224).pixels(turned(middle_HWC)), rtol=0, atol=0)


def test_squash_changes_the_aspect() -> None:
    assert Preprocess(size=32, resize="squash").pixels(photo(50, 90)).shape == (3, 32, 32)


def test_normalise_takes_out_mean_and_deviation() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    got = Preprocess(size=4).normalise(pixels)
    for channel in range(3):
        want = (pixels[:, channel] / 255 - OPENAI_MEAN[channel]) / OPENAI_STD[channel]
        torch.testing.assert_close(got[:, channel], want, rtol=0, atol=1e-5)


def test_augmentation_is_a_function_of_its_generator() -> None:
    options = Augment(crop_area=(0.4, 1.0), shift=2, flip=0.5, grey=0.5, grey_removes=("red",))
    rgb = photo(60, 80)
    drawn = [augment(rgb, "a red car", options, Preprocess(size=32), np.random.default_rng(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0][0], drawn[1][0]) and drawn[0][1] == drawn[1][1]
    assert not torch.equal(drawn[0][0], drawn[2][0])
    assert all(pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8 for pixels, _ in drawn)


def test_a_grey_image_loses_its_colour_words() -> None:
    options = Augment(grey=1.0, grey_removes=("red", "blue"))
    pixels, caption = augment(photo(32, 32), "a red one and a Reddish blue two", options, Preprocess(32), np.random.default_rng(0))
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[1], pixels[2])
    assert caption == "a one and a Reddish two"


def test_no_augmentation_is_preprocessing() -> None:
    pixels, caption = augment(photo(40, 50), "x", Augment(), Preprocess(32), np.random.default_rng(0))
    assert torch.equal(pixels, Preprocess(32).pixels(photo(40, 50))) and caption == "x"


def test_a_shift_moves_by_whole_pixels() -> None:
    image = torch.arange(9).reshape(1, 3, 3)
    assert shifted(image, 1, 0).tolist() == [[[0, 1, 2], [0, 1, 2], [3, 4, 5]]]
    assert shifted(image, 0, -1).tolist() == [[[1, 2, 2], [4, 5, 5], [7, 8, 8]]]


def test_words_are_removed_whole() -> None:
    assert without("a red, redder red-hot stove", ("red",)) == "a , redder -hot stove"
    assert without("unchanged  text", ()) == "unchanged  text"


def test_dropped_words_and_features_follow_the_generator() -> None:
    options = Augment(word_drop=0.5, feature_drop=0.25)
    drawn = [augment_features(torch.ones(400), "one two three four five six", options, np.random.default_rng(s)) for s in (1, 1, 2)]
    assert torch.equal(drawn[0][0], drawn[1][0]) and drawn[0][1] == drawn[1][1]
    assert not torch.equal(drawn[0][0], drawn[2][0])
    features, caption = drawn[0]
    assert set(features.tolist()) <= {0.0, torch.tensor(1 / 0.75).item()}
    assert 0.15 < float((features == 0).float().mean()) < 0.35
    assert 0 < len(caption.split()) < 6 and set(caption.split()) <= {"one", "two", "three", "four", "five", "six"}
    assert thinned("word", 1.0, np.random.default_rng(0)) == "word"


def test_crops_keep_to_their_share_and_aspect() -> None:
    random = np.random.default_rng(0)
    boxes = [crop_box(224, 300, (0.5, 1.0), random) for _ in range(500)]
    for top, left, height, width in boxes:
        assert top >= 0 and top + height <= 224 and left >= 0 and left + width <= 300
        assert 0.49 < height * width / (224 * 300) <= 1.0
        assert 0.74 < width / height < 1.35
    shares = np.array([height * width for _, _, height, width in boxes]) / (224 * 300)
    assert 0.65 < shares.mean() < 0.78  # 0.75, less the large ones that did not fit


def test_a_crop_of_a_strip_is_its_middle() -> None:
    assert crop_box(10, 500, (0.9, 1.0), np.random.default_rng(0)) == (0, 243, 10, 13)
    assert crop_box(500, 10, (0.9, 1.0), np.random.default_rng(0)) == (243, 0, 13, 10)
