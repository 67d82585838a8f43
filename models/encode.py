"""Pixels become encoded bytes here and nowhere else: the counterpart of `codec.py`, where bytes become pixels.

The same pixels give the same bytes under the same versions of the libraries (`versions`); another version may give others,
so whoever promises bytes names the versions too. Nothing but pixels is written: no EXIF, no profile, no date.
"""

from __future__ import annotations

from importlib.metadata import version
from io import BytesIO
from typing import Literal, get_args

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from sightline.models.codec import ImageError

Format = Literal["jpeg", "png", "webp"]
FORMATS: tuple[str, ...] = get_args(Format)
MAX_SIDE = {"jpeg": 65_535, "png": 2**31 - 1, "webp": 16_383}  # what the format's header can hold
LIBRARIES = ("pillow", "simplejpeg", "torch")  # decoding, encoding, resampling


def encode(rgb_HWC: NDArray[np.uint8], format: str, quality: int) -> bytes:
    """A picture, uint8 [height, width, 3], as a file. `quality`, 1 to 100, is of no meaning for PNG, which loses nothing.

    JPEGs have 4:2:0 chroma, as photos on the web do.

    Raises:
        ImageError: the format cannot hold a side as long as this.
    """
    assert format in FORMATS, format
    height, width, _ = rgb_HWC.shape
    if max(height, width) > MAX_SIDE[format]:
        raise ImageError(
            "too_long", f"{width:,} x {height:,} pixels do not fit a {format}, whose sides end at {MAX_SIDE[format]:,}"
        )
    if format == "jpeg":
        pixels = np.ascontiguousarray(rgb_HWC)
        return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420"))
    buffer = BytesIO()
    if format == "webp":
        Image.fromarray(rgb_HWC).save(buffer, "WEBP", quality=quality)
    else:
        Image.fromarray(rgb_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def encode_labels(labels_HW: NDArray[np.uint8]) -> bytes:
    """A label map, uint8 [height, width], as a grey PNG; `codec.decode_labels` gives it back."""
    buffer = BytesIO()
    Image.fromarray(labels_HW).save(buffer, "PNG")
    return buffer.getvalue()


def versions() -> dict[str, str]:
    """Of the libraries that decide what bytes pixels become; without the suffix that tells builds apart (`+cpu`)."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}
