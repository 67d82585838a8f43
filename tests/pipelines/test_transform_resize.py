"""Resizing at ingest: geometry against arithmetic on fractions, pixels against Pillow, masks against the image."""

from __future__ import annotations

import io
import subprocess
import sys
from fractions import Fraction
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.models.codec import decode_labels, decode_rgb, probe
from sightline.pipelines.corpus.schema import IGNORE, Rejected, Row
from sightline.pipelines.ingest.resize import MODES, Resize, nearest
from sightline.pipelines.ingest.sources.item import Item
from sightline.pipelines.ingest.transform import transform

ROWS, COLUMNS = np.mgrid[:300, :400]
PHOTO = np.stack([ROWS * 0.8, COLUMNS * 0.6, (ROWS + COLUMNS) * 0.3], axis=2).astype(np.uint8)
LABELS = (ROWS // 100 * 4 + COLUMNS // 100).astype(np.uint8)
SIDES = st.integers(1, 2_000)


def encoded(pixels: Any, format: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def outcome(
    image: bytes, resize: str = "keep", encode: str = "original", mask: bytes | None = None, **options: Any
) -> Row | Rejected:
    files = {"x": image} | ({} if mask is None else {"m": mask})
    item = Item(key="k", image="x", mask=None if mask is None else "m", captions=("a",))
    return transform(item, 0, files.__getitem__, resize=Resize.parse(resize, encode), **options)


def row(*arguments: Any, **options: Any) -> Row:
    result = outcome(*arguments, **options)
    assert isinstance(result, Row), result
    return result


# --- what stays


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_with_keep_the_bytes_and_their_digest_are_the_files_own(format: str) -> None:
    data = encoded(PHOTO, format)
    kept = row(data)
    assert kept.image == data and kept.sha256 == sha256(data).digest()


@pytest.mark.parametrize("choice", ["shortest=300", "shortest=512", "longest=400", "longest=900", "exact=500x500,shrink", "keep"])
@pytest.mark.parametrize("encode", ["original", "jpeg:50"])
def test_an_image_that_needs_no_change_keeps_its_bytes_and_its_exif(choice: str, encode: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, "a description"
    data, mask = encoded(PHOTO, exif=exif), encoded(LABELS, "PNG")
    kept = row(data, choice, encode, mask)
    assert (kept.image, kept.mask) == (data, mask)


def test_another_encoding_alone_changes_the_bytes_and_neither_the_pixels_nor_the_mask() -> None:
    data, mask = encoded(PHOTO), encoded(LABELS, "PNG")
    made = row(data, "keep", "png", mask)
    assert (made.format, made.mask) == ("png", mask)
    assert (decode_rgb(made.image) == decode_rgb(data)).all()


# --- what changes


@pytest.mark.parametrize(
    ("choice", "size"),
    [
        ("shortest=150", (200, 150)),
        ("shortest=600,enlarge", (800, 600)),
        ("longest=100", (100, 75)),
        ("longest=800,enlarge", (800, 600)),
        ("exact=50x90", (50, 90)),
        ("exact=64", (64, 64)),
        ("centre_crop=128", (128, 128)),
        ("centre_crop=500x20", (500, 20)),
        ("pad=128", (128, 128)),
        ("pad=1000x700", (1000, 700)),
        ("pad=399x300,shrink", (399, 300)),
    ],
)
def test_every_mode_gives_the_size_that_it_names(choice: str, size: tuple[int, int]) -> None:
    made = row(encoded(PHOTO), choice, mask=encoded(LABELS, "PNG"))
    assert (made.width, made.height) == size == (probe(made.image).width, probe(made.image).height)
    assert made.format == "jpeg"
    assert made.mask is not None and decode_labels(made.mask).shape == size[::-1]


def test_resized_pixels_are_pillows_bicubic_within_a_grey_level() -> None:
    made = decode_rgb(row(encoded(PHOTO, "PNG"), "exact=123x77").image).astype(int)
    expected = np.asarray(Image.fromarray(PHOTO).resize((123, 77), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(made - expected).max() <= 1


def test_a_centre_crop_is_the_middle_and_a_pad_is_white_around_it() -> None:
    cropped = decode_rgb(row(encoded(PHOTO, "PNG"), "centre_crop=300x300").image)
    assert (cropped == PHOTO[:, 50:350]).all()
    padded = decode_rgb(row(encoded(PHOTO, "PNG"), "pad=400x400").image)
    assert (padded[50:350] == PHOTO).all()
    assert (padded[:50] == 255).all() and (padded[350:] == 255).all()


def test_an_upright_image_is_resized_whatever_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    made = row(encoded(PHOTO, exif=exif), "shortest=150")
    assert (made.width, made.height) == (150, 200)
    assert Image.open(io.BytesIO(made.image)).getexif() == {}


@pytest.mark.parametrize(
    ("format", "expected"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "png"), ("GIF", "png")]
)
def test_resized_originals_stay_in_their_format_or_become_png(format: str, expected: str) -> None:
    assert row(encoded(PHOTO, format), "shortest=64").format == expected


def test_the_same_input_gives_the_same_bytes() -> None:
    assert row(encoded(PHOTO), "shortest=150", "jpeg:80") == row(encoded(PHOTO), "shortest=150", "jpeg:80")


# --- masks


def test_padding_belongs_to_no_class_and_no_new_label_appears() -> None:
    mask = decode_labels(row(encoded(PHOTO), "pad=128", mask=encoded(LABELS, "PNG")).mask or b"")
    assert (mask[:16] == IGNORE).all() and (mask[-16:] == IGNORE).all()
    assert set(np.unique(mask[16:-16])) == set(np.unique(LABELS))


@pytest.mark.parametrize("choice", ["shortest=150", "centre_crop=200", "pad=200", "exact=90x60"])
def test_a_mask_goes_where_its_image_goes(choice: str) -> None:
    """An image that shows its own label map, in colours far apart."""
    shown = np.repeat(np.where(LABELS % 2, 250, 5)[:, :, None], 3, axis=2).astype(np.uint8)
    made = row(encoded(shown, "PNG"), choice, mask=encoded((LABELS % 2).astype(np.uint8), "PNG"))
    seen, mask = decode_rgb(made.image)[:, :, 0] > 127, decode_labels(made.mask or b"")
    inside = mask != IGNORE
    assert (seen[inside] == (mask[inside] == 1)).mean() > 0.97  # they may differ along edges


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60), st.integers(1, 60))
def test_nearest_takes_the_label_below_each_pixels_centre(height: int, width: int, new_height: int, new_width: int) -> None:
    labels = np.arange(height * width).astype(np.uint8).reshape(height, width)
    made = nearest(labels, (new_width, new_height))
    for y in {0, new_height // 2, new_height - 1}:
        for x in {0, new_width // 3, new_width - 1}:
            row_, column = int(Fraction(2 * y + 1, 2 * new_height) * height), int(Fraction(2 * x + 1, 2 * new_width) * width)
            assert made[y, x] == labels[row_, column]


# --- geometry


@settings(deadline=None)
@given(SIDES, SIDES, SIDES)
def test_shortest_and_longest_set_that_side_and_keep_the_aspect(width: int, height: int, side: int) -> None:
    for mode, chosen in (("shortest", min), ("longest", max)):
        scaled, final = Resize.parse(f"{mode}={side},enlarge").geometry((width, height))
        assert scaled == final and chosen(final) == side
        exact = Fraction(side, chosen(width, height))
        assert abs(final[0] - width * exact) <= 1 and abs(final[1] - height * exact) <= 1


@settings(deadline=None)
@given(st.sampled_from(MODES[1:]), SIDES, SIDES, SIDES)
def test_only_if_larger_never_enlarges(mode: str, width: int, height: int, side: int) -> None:
    scaled, final = Resize(mode, (side, side), only_if_larger=True).geometry((width, height))
    assert scaled[0] <= width and scaled[1] <= height
    assert final == scaled == (width, height) or mode in ("shortest", "longest") or final == (side, side)


@settings(deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_a_crop_covers_its_box_and_a_padded_image_fits_into_it(width: int, height: int, box_width: int, box_height: int) -> None:
    box = (box_width, box_height)
    covering, final = Resize("centre_crop", box, only_if_larger=False).geometry((width, height))
    assert final == box and covering[0] >= box_width and covering[1] >= box_height
    fitting, final = Resize("pad", box, only_if_larger=False).geometry((width, height))
    assert final == box and fitting[0] <= box_width and fitting[1] <= box_height


# --- refusals


@pytest.mark.parametrize(
    ("resize", "encode", "words"),
    [
        ("shorter=3", "original", "choose from keep, shortest"),
        ("shortest", "original", "write it like shortest=256"),
        ("shortest=2x3", "original", "too many sides"),
        ("shortest=-3", "original", "no whole number"),
        ("shortest=0", "original", "out of range"),
        ("pad=70000", "original", "out of range"),
        ("pad=10,always", "original", "write it like"),
        ("keep=10", "original", "write it like"),
        ("keep,enlarge", "original", "write it like"),
        ("keep", "gif", "choose from original, jpeg"),
        ("keep", "jpeg:0", "1 to 100"),
        ("keep", "jpeg:best", "no whole number"),
        ("keep", "png:3", "no quality"),
        ("keep", "original:3", "no quality"),
    ],
)
def test_a_mistaken_option_is_refused_with_its_remedy(resize: str, encode: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Resize.parse(resize, encode)


def test_a_sliver_that_would_become_a_bomb_is_an_error_row() -> None:
    sliver = encoded(np.zeros((1, 30_000, 3), np.uint8), "PNG")
    result = outcome(sliver, "shortest=2560,enlarge")
    assert isinstance(result, Rejected) and (result.stage, result.code) == ("encode", "too_many_pixels")


def test_a_side_that_the_encoding_cannot_hold_is_an_error_row() -> None:
    result = outcome(encoded(np.zeros((1, 30_000, 3), np.uint8), "PNG"), "keep", "webp")
    assert isinstance(result, Rejected) and (result.stage, result.code) == ("encode", "too_long")


# --- the plan's configuration


def test_versions_belong_to_the_configuration_only_when_pixels_are_encoded() -> None:
    assert "versions" not in Resize().config()
    assert {"torch", "simplejpeg", "pillow"} == set(Resize.parse("shortest=256").config()["versions"])


@pytest.mark.parametrize("choice", [("keep", "original"), ("shortest=256", "jpeg:80"), ("pad=3x4,shrink", "png")])
def test_a_configuration_gives_the_choice_back(choice: tuple[str, str]) -> None:
    resize = Resize.parse(*choice)
    assert Resize.from_config(resize.config()) == resize


def test_a_worker_with_other_libraries_than_the_plan_is_refused() -> None:
    config = Resize.parse("shortest=256").config()
    with pytest.raises(ValueError, match="torch 0"):
        Resize.from_config({**config, "versions": {**config["versions"], "torch": "0.1"}})


# --- bombs

BOMBS = """
import io, resource, struct, sys, zlib
from PIL import Image
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.item import Item
from sightline.pipelines.ingest.transform import transform

def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

def png(side, bits=8):  # all of it, a row at a time
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + side * bits // 8)) for _ in range(side)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, 0, 0, 0, 0))
    return b"\\x89PNG\\r\\n\\x1a\\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")

def jpeg(side):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\\xff\\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)

def outcome(data, mask=None):
    resize = Resize.parse("shortest=256", "jpeg")
    item = Item(key="k", image="x", mask=None if mask is None else "m")
    return transform(item, 0, {"x": data, "m": mask}.__getitem__, resize=resize)

small = png(512)
assert outcome(small, small).width == 256  # whatever is loaded once is loaded now
bombs = [(png(30_000, 1),), (jpeg(60_000),), (jpeg(65_500),), (small, png(30_000, 1))]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in bombs:
    assert outcome(*bomb).code.endswith("too_many_pixels")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_real_bombs_are_refused_from_their_headers_without_memory() -> None:
    """In a fresh process: the highest memory of this one may be above anything by now."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", BOMBS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 20_000  # KiB, of the 200 MB that may be
