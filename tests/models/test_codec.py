"""Bytes become pixels as Pillow, used in the plainest way, makes them; hostile bytes become an `ImageError` alone."""

from __future__ import annotations

import csv
import io
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sightline.models.codec import ImageError, decode_labels, decode_rgb, probe

ORIENTATION = 0x0112


def photo(width: int = 37, height: int = 23) -> Image.Image:
    """A smooth colour picture without symmetry."""
    y, x = np.mgrid[:height, :width]
    red, green, blue = x * 255 / width, y * 255 / height, (x + y) % 40 * 6
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def reference(data: bytes) -> NDArray[np.uint8]:
    """What Pillow makes of an ordinary opaque image."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return np.asarray(image.convert("RGB"))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg_header(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size than the one that was encoded."""
    data = bytearray(encoded(photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 1}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_has_the_very_pixels_that_pillow_gives(mode: str, options: dict[str, object]) -> None:
    data = encoded(photo().convert(mode), "JPEG", **options)
    assert np.array_equal(decode_rgb(data), reference(data))


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("TGA", {}),
        ("JPEG2000", {"irreversible": False}),
    ],
)
def test_lossless_formats_give_back_the_picture(format: str, options: dict[str, object]) -> None:
    data = encoded(photo(), format, **options)
    assert np.array_equal(decode_rgb(data), np.asarray(photo()))
    assert probe(data).format == format.lower()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photo(), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    pixels, info = decode_rgb(data), probe(data)
    assert np.array_equal(pixels, reference(data))
    assert (info.height, info.width) == pixels.shape[:2]
    assert (info.width < info.height) == (orientation >= 5)


def test_an_orientation_in_xmp_alone_counts_as_it_does_in_pillow() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(photo(), "JPEG", xmp=xmp)
    assert np.array_equal(decode_rgb(data), reference(data))
    assert probe(data).width == photo().height


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_is_no_orientation() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff" + bytes(40))
    assert decode_rgb(data).shape == (23, 37, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_on_white(mode: str, format: str) -> None:
    alpha = Image.fromarray((np.arange(37 * 23) % 256).reshape(23, 37).astype(np.uint8))
    image = photo().convert(mode)
    image.putalpha(alpha)
    data = encoded(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    colour = np.asarray(image.convert("RGBA"))[:, :, :3].astype(float)
    opacity = np.asarray(alpha)[:, :, None] / 255
    expected = colour * opacity + 255 * (1 - opacity)
    assert np.abs(decode_rgb(data) - expected).max() <= 1


def test_a_transparent_palette_colour_is_white() -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1, 0, 1])
    data = encoded(image, "PNG", transparency=1)
    assert decode_rgb(data).tolist() == [[[10, 20, 30], [255, 255, 255]] * 2]


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_become_rgb(mode: str) -> None:
    data = encoded(photo().convert(mode), "PNG")
    assert np.array_equal(decode_rgb(data), np.asarray(photo().convert(mode).convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bit_grey_is_scaled_from_its_full_range(format: str) -> None:
    grey = np.linspace(0, 65_535, 37 * 23).reshape(23, 37).astype(np.uint16)
    pixels = decode_rgb(encoded(Image.fromarray(grey), format))
    assert np.abs(pixels - (grey / 257)[:, :, None]).max() <= 0.5


def test_a_dark_16_bit_image_stays_dark() -> None:
    grey = np.full((4, 4), 514, np.uint16)
    assert decode_rgb(encoded(Image.fromarray(grey), "PNG")).max() == 2


@pytest.mark.parametrize(
    ("values", "full"),
    [
        (np.linspace(0, 1, 64), 1),
        (np.linspace(0, 200, 64), 255),
        (np.linspace(0, 60_000, 64), 65_535),
    ],
)
def test_float_images_are_scaled_from_the_usual_range_that_holds_them(values: NDArray[np.float64], full: int) -> None:
    pixels = decode_rgb(encoded(Image.fromarray(values.reshape(8, 8).astype(np.float32)), "TIFF"))
    assert np.abs(pixels[:, :, 0].ravel() - values * 255 / full).max() <= 0.5


def test_values_beyond_every_usual_range_are_stretched() -> None:
    values = np.linspace(-5, 1_000_000, 64, dtype=np.float32).reshape(8, 8)
    pixels = decode_rgb(encoded(Image.fromarray(values), "TIFF"))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_32_bit_integers_are_scaled_like_the_bits_they_use() -> None:
    values = np.linspace(0, 65_535, 64).astype(np.int32).reshape(8, 8)
    pixels = decode_rgb(encoded(Image.fromarray(values), "TIFF"))
    assert np.abs(pixels[:, :, 0] - values / 257).max() <= 0.51


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_counts(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (decode_rgb(data) == [255, 0, 0]).all()


def test_a_memoryview_is_decoded_like_bytes_and_the_result_may_be_written_to() -> None:
    for format in ("JPEG", "PNG"):
        data = encoded(photo(), format)
        pixels = decode_rgb(memoryview(b"xx" + data)[2:])
        assert np.array_equal(pixels, decode_rgb(data))
        assert pixels.flags.writeable
        assert pixels.flags.c_contiguous


def icon(png: bytes) -> bytes:
    """An icon whose directory claims 16 x 16 for whatever PNG it holds."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(png), 22) + png


@pytest.mark.parametrize(
    "data",
    [
        png_header(60_000, 60_000),
        png_header(30_000, 3_000),
        jpeg_header(60_000, 60_000),
        jpeg_header(10_000, 10_000),
        icon(encoded(Image.new("1", (12_000, 6_000)), "PNG")),
    ],
    ids=["png", "smaller png", "jpeg", "smaller jpeg", "icon"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_are_refused_from_the_header(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError) as caught:
        decode_rgb(data)
    assert caught.value.code == "too_many_pixels"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_the_pixel_limit_is_inclusive() -> None:
    data = encoded(photo(), "JPEG")
    assert decode_rgb(data, max_pixels=37 * 23).shape == (23, 37, 3)
    with pytest.raises(ImageError, match="37 x 23"):
        decode_rgb(data, max_pixels=37 * 23 - 1)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"x", "not_an_image"),
        (b"<html>502 Bad Gateway</html>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image"),
        (encoded(photo(), "JPEG")[:-300], "truncated"),
        (encoded(photo(), "PNG")[:-40], "truncated"),
        (b"\xff\xd8\xff", "corrupt"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "corrupt"),
    ],
)
def test_what_is_no_picture_has_a_reason(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_rgb(data)
    assert caught.value.code == code
    assert str(caught.value)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "TGA", "ICO"]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    st.floats(0, 1),
)
def test_damage_ends_in_pixels_or_in_an_image_error(format: str, edits: list[tuple[float, int]], keep: float) -> None:
    data = bytearray(encoded(photo(), format))
    for place, value in edits:
        data[int(place * len(data))] = value
    try:
        pixels = decode_rgb(bytes(data[: int(keep * len(data)) + 1]), max_pixels=1_000_000)
    except ImageError as error:
        assert error.code
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


def index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.filterwarnings("ignore")
def test_every_hostile_file_is_decoded_or_refused_quickly(shared_data: Path) -> None:
    decoded = set()
    for row in index(shared_data / "hostile"):
        begun = time.process_time()
        try:
            decode_rgb((shared_data / "hostile" / row["file"]).read_bytes())
            decoded.add(row["file"])
        except ImageError:
            pass
        assert time.process_time() - begun < 2, row["file"]
    allowed = {row["file"] for row in index(shared_data / "hostile") if "decodes in Pillow" in row["what"]}
    assert decoded == allowed - {"png_bomb_12000_1bit.png"}


def test_every_odd_but_valid_file_is_decoded_at_its_size(shared_data: Path) -> None:
    for row in index(shared_data / "odd_valid"):
        data = (shared_data / "odd_valid" / row["file"]).read_bytes()
        if row["file"] == "hopper.heif":
            with pytest.raises(ImageError):
                decode_rgb(data)
            continue
        info = probe(data)
        assert decode_rgb(data).shape == (int(row["height"]), int(row["width"]), 3), row["file"]
        assert (info.width, info.height) == (int(row["width"]), int(row["height"])), row["file"]


def test_the_hopper_is_upright_in_every_orientation(shared_data: Path) -> None:
    folder = shared_data / "odd_valid"
    upright = decode_rgb((folder / "exif_orientation_1.jpg").read_bytes()).astype(int)
    for number in range(2, 9):
        turned = decode_rgb((folder / f"hopper_orientation_{number}.jpg").read_bytes())
        assert np.abs(turned - upright).mean() < 12, number


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_label_map_keeps_its_values(mode: str) -> None:
    labels = (np.arange(12 * 20) % 21).reshape(12, 20).astype(np.uint8)
    labels[0, 0] = 255
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    assert np.array_equal(decode_labels(encoded(image, "PNG")), labels)


@pytest.mark.parametrize(
    "data",
    [encoded(photo(), "PNG"), encoded(photo().convert("L"), "JPEG"), encoded(photo().convert("LA"), "PNG"), b"x"],
    ids=["colour", "jpeg", "alpha", "no image"],
)
def test_what_is_no_label_map_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode_labels(data)
    assert caught.value.code in ("not_a_label_map", "not_an_image")
