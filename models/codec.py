"""Encoded bytes become pixels here and nowhere else, so that ingest, training, evaluation and serving see the same
image.

Pillow is the reference; simplejpeg is a faster way to the same pixels (full decodes are bit-equal), and whatever it
declines goes to Pillow. Hostile bytes end in an `ImageError` with a short stable code, whatever the decoders raise; the
number of pixels is checked in the header, before anything is decoded. EXIF orientation is applied and transparency lies
on white. Colour profiles are ignored, as in CLIP's own training.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

MAX_PIXELS = 64_000_000
# Formats that hold pictures and nothing to execute, each with a decoder in C. Those without a signature come last.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "PIXAR", "TGA")
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*", b"BM")
JPEG, PNG, ICO = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0\0\1\0"
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


class ImageError(ValueError):
    """These bytes give no picture.

    Attributes:
        code: `empty`, `not_an_image`, `too_many_pixels`, `truncated`, `corrupt` or `not_a_label_map`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return (ImageError, (self.code, str(self)))


@dataclass(frozen=True)
class ImageInfo:
    """What the header says.

    Attributes:
        format: in lower case, e.g. `jpeg`.
        width, height: in pixels, after EXIF orientation.
    """

    format: str
    width: int
    height: int


@dataclass(frozen=True)
class _Opened:
    """A picture whose header was read. `image` is Pillow's, not decoded yet; None where simplejpeg can decode it."""

    info: ImageInfo
    orientation: int
    image: Image.Image | None


def probe(data: bytes | memoryview) -> ImageInfo:
    """Format and size from the header, without decoding.

    Raises:
        ImageError: there is no header that can be read.
    """
    with _image_errors():
        return _open(bytes(data), None).info


def decode(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> tuple[ImageInfo, NDArray[np.uint8]]:
    """What the header says, and the picture as a person would see it: uint8 [height, width, 3], upright; the first frame
    of an animation.

    Raises:
        ImageError: it is no picture, a damaged one, or one of more than `max_pixels`.
    """
    data = bytes(data)
    with _image_errors():
        opened = _open(data, max_pixels)
        if opened.image is None:
            try:
                return opened.info, _upright(simplejpeg.decode_jpeg(data, colorspace="RGB"), opened.orientation)
            except ValueError:
                # It takes libjpeg's every warning for an error. Pillow tells damage from harmless oddities.
                opened = _Opened(opened.info, opened.orientation, _pillow(data))
        assert opened.image is not None
        with opened.image as image:
            image.load()
            return opened.info, _upright(_rgb(image), opened.orientation)


def decode_rgb(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The pixels alone, as `decode` gives them."""
    return decode(data, max_pixels=max_pixels)[1]


def decode_labels(data: bytes | memoryview, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """A label map, uint8 [height, width]: the grey values of a PNG, or the indices of a palette PNG.

    Raises:
        ImageError: it is no PNG with one channel of 8 bits, or a damaged one.
    """
    data = bytes(data)
    with _image_errors():
        opened = _open(data, max_pixels)
        if opened.image is None or opened.info.format != "png" or opened.image.mode not in ("1", "L", "P"):
            raise ImageError("not_a_label_map", "a mask is a PNG with one channel of 8 bits, or with a palette")
        with opened.image as image:
            image.load()
            return np.asarray(image).astype(np.uint8)


@contextmanager
def _image_errors() -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        formats = ", ".join(FORMATS)
        raise ImageError("not_an_image", f"these bytes are no image of a known format ({formats})") from None
    except Image.DecompressionBombError as error:
        raise ImageError("too_many_pixels", str(error)) from None
    # Broad on purpose: on hostile bytes Pillow raises OSError, SyntaxError, TypeError, struct.error, MemoryError ...
    except Exception as error:
        message = f"{type(error).__name__}: {error}".strip(": ")
        cut = isinstance(error, EOFError) or any(word in message.lower() for word in ("truncated", "unexpected end"))
        raise ImageError("truncated" if cut else "corrupt", message) from None


def _open(data: bytes, max_pixels: int | None) -> _Opened:
    """Read the header; refuse more pixels than allowed."""
    if not data:
        raise ImageError("empty", "there are no bytes")
    if data.startswith(ICO):
        _check_pixels(max(_icon_sizes(data), default=(0, 0)), max_pixels)  # Pillow decodes icons when it opens them
    opened = _open_jpeg(data) if data.startswith(JPEG) else None
    if opened is None:
        image = _pillow(data)
        format = "jpeg" if image.format == "MPO" else str(image.format).lower()
        opened = _opened(format, *image.size, _orientation(image), image)
    _check_pixels((opened.info.width, opened.info.height), max_pixels)
    return opened


def _open_jpeg(data: bytes) -> _Opened | None:
    """The fast way in for ordinary JPEGs; None for those that simplejpeg does not read as Pillow does."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colorspace in ("CMYK", "YCCK"):
        return None
    # Pillow reads the orientation, from either of the places where it looks; most files have neither.
    end = _jpeg_scan(data)
    may_be_turned = data.find(b"Exif\0", 0, end) >= 0 or data.find(b"tiff:Orientation", 0, end) >= 0
    return _opened("jpeg", width, height, _orientation(_pillow(data)) if may_be_turned else 1, None)


def _jpeg_scan(data: bytes) -> int:
    """Where a JPEG's pixels begin; its end if the segments before them are not in the plainest order."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and 0xC0 <= data[at + 1] < 0xFF and not 0xD0 <= data[at + 1] <= 0xD9:
        if data[at + 1] == 0xDA:
            return at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return len(data)


def _opened(format: str, width: int, height: int, orientation: int, image: Image.Image | None) -> _Opened:
    if orientation in TURNED:
        width, height = height, width
    return _Opened(ImageInfo(format, width, height), orientation, image)


def _pillow(data: bytes) -> Image.Image:
    try:
        return Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data.startswith(SIGNATURES):
            raise ImageError("corrupt", "the bytes begin like an image, and no header can be read") from None
        raise


def _check_pixels(size: tuple[int, int], max_pixels: int | None) -> None:
    width, height = size
    if max_pixels is not None and width * height > max_pixels:
        raise ImageError("too_many_pixels", f"{width:,} x {height:,} pixels are more than the {max_pixels:,} allowed")


def _icon_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """The sizes that an icon's entries claim in their own headers (the icon's directory may lie)."""
    (count,) = struct.unpack_from("<H", data, 4)
    for entry in range(count):
        (offset,) = struct.unpack_from("<I", data, 6 + 16 * entry + 12)
        if data[offset : offset + 8] == PNG:
            yield struct.unpack_from(">II", data, offset + 16)
        else:
            width, height = struct.unpack_from("<ii", data, offset + 4)
            yield abs(width), abs(height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, as far as it stands in the header; 1 where there is none."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    try:
        # The base class: PNG's own method decodes the whole image to look behind the pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # broad: the block may be any bytes, and a picture with a broken one is still a picture
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation."""
    if orientation in TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Any mode of Pillow as uint8 [height, width, 3]."""
    if image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(_grey(image)[:, :, None], 3, axis=2)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(rgba, mask=rgba)
    return np.array(canvas)


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    """Deep grey values as 8 bits: 16 bits by 257, others by the least usual full scale (1, 255, 65,535)."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") or image.format == "PPM":  # Pillow scales every PPM to 16 bits
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    else:
        values = np.nan_to_num(values.astype(np.float32))
        low, high = float(values.min()), float(values.max())
        scales = (1.0, 255.0, 65_535.0) if image.mode == "F" else (255.0, 65_535.0)
        full = next((scale for scale in scales if low >= 0 and high <= scale), None)
        low, full = (0.0, full) if full else (low, high - low)  # none holds them: from the least to the greatest
        grey = np.rint((values - low) * (255.0 / full)).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey
