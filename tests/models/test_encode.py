"""Encoded pixels are what another decoder finds in the bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sightline.models.codec import ImageError, decode_labels, decode_rgb, probe
from sightline.models.encode import FORMATS, encode, encode_labels, versions

ROWS, COLUMNS = np.mgrid[:40, :60]
SMOOTH = np.stack([ROWS * 6, COLUMNS * 4, ROWS + COLUMNS], axis=2).astype(np.uint8)


@pytest.mark.parametrize("format", FORMATS)
def test_an_encoded_picture_is_that_format_and_looks_the_same_to_pillow(format: str) -> None:
    data = encode(SMOOTH, format, 95)
    seen = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert probe(data).format == format
    assert np.abs(seen - SMOOTH).mean() < (0.01 if format == "png" else 3)


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_a_lower_quality_takes_fewer_bytes(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert len(encode(noise, format, 30)) < len(encode(noise, format, 90))


def test_png_ignores_the_quality() -> None:
    assert encode(SMOOTH, "png", 1) == encode(SMOOTH, "png", 100)


@pytest.mark.parametrize(("format", "side"), [("jpeg", 65_536), ("webp", 16_384)])
def test_a_side_that_the_format_cannot_hold_is_refused(format: str, side: int) -> None:
    with pytest.raises(ImageError) as caught:
        encode(np.zeros((1, side, 3), np.uint8), format, 90)
    assert caught.value.code == "too_long"


def test_jpegs_that_are_views_of_larger_arrays_hold_the_view() -> None:
    assert encode(SMOOTH[::2, 5:40], "jpeg", 90) == encode(SMOOTH[::2, 5:40].copy(), "jpeg", 90)


def test_label_maps_come_back_exactly() -> None:
    labels = np.random.default_rng(0).integers(0, 256, (17, 23), np.uint8)
    assert (decode_labels(encode_labels(labels)) == labels).all()


def test_nothing_but_pixels_is_written() -> None:
    for format in FORMATS:
        assert Image.open(io.BytesIO(encode(SMOOTH, format, 90))).getexif() == {}
        assert decode_rgb(encode(SMOOTH, format, 90)).shape == SMOOTH.shape


def test_versions_name_releases_and_not_builds() -> None:
    assert set(versions()) == {"pillow", "simplejpeg", "torch"}
    assert not any("+" in number for number in versions().values())
