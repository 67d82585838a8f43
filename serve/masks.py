"""Label maps become palette PNGs: one byte a pixel, its colours in the file, index 0 transparent; or run lengths, as COCO has them.

The first colours are those of Okabe and Ito (2008), which people with any colour vision tell apart; later ones walk around
the hue circle by the golden angle. A label's colour depends on its place in the list alone.
"""

from __future__ import annotations

import colorsys
import io
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
GOLDEN_ANGLE = 0.381966  # as a share of the circle
PNG_LEVEL = 6  # measured on 768 × 1024 with 13 classes: 4 ms and 18 kB; level 1 halves the time and doubles the bytes
# Of score maps, a file for each label. PNG's filters leave small differences, in which runs are all there is to find: deflate with
# its search takes half as long again for a fifteenth fewer bytes.
SCORES_LEVEL, SCORES_STRATEGY = 1, zlib.Z_RLE


def colour(index: int) -> str:
    """The colour `#rrggbb` of the label at that place of the list, from 0."""
    if index < len(OKABE_ITO):
        return OKABE_ITO[index]
    step = index - len(OKABE_ITO)
    red, green, blue = colorsys.hsv_to_rgb((0.02 + step * GOLDEN_ANGLE) % 1, 0.9 - 0.25 * (step % 3), 0.95 - 0.2 * (step % 2))
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def encode(label_map_HW: NDArray[np.uint8], labels: int) -> bytes:
    """The palette PNG of a map whose values are 0 (background, transparent) to `labels`."""
    assert label_map_HW.dtype == np.uint8 and label_map_HW.max(initial=0) <= labels <= 255
    image = Image.fromarray(label_map_HW, mode="P")
    image.putpalette(bytes(3) + b"".join(bytes.fromhex(colour(i)[1:]) for i in range(labels)))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=PNG_LEVEL, transparency=0)
    return file.getvalue()


def encode_scores(scores_HW: NDArray[np.float32], at: tuple[NDArray[np.int64], NDArray[np.int64]]) -> bytes:
    """Scores of one label as a grey PNG: 0 and below is black, 1 is white; `at` says which of them each of its pixels shows."""
    file = io.BytesIO()
    grey = (scores_HW.clip(0, 1) * 255).round().astype(np.uint8)[at]
    Image.fromarray(grey).save(file, "PNG", compress_level=SCORES_LEVEL, compress_type=SCORES_STRATEGY)
    return file.getvalue()


def run_lengths(mask_HW: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs down the columns, of pixels outside and inside in turn; the first is outside, and may be 0."""
    pixels = mask_HW.ravel(order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [pixels.size]])).tolist()
    return [0, *lengths] if pixels.size and pixels[0] else lengths


def coco_counts(lengths: list[int]) -> str:
    """COCO's compressed form of run lengths: each, less the one two before it (from the fourth), in digits of 5 bits and a sign.

    A digit's sixth bit says that more follow; 48 is added to make it a character (`rleToString` of cocoapi's maskApi.c).
    """
    characters: list[int] = []
    for i, length in enumerate(lengths):
        rest = length - lengths[i - 2] if i > 2 else length
        more = True
        while more:
            digit = rest & 31
            rest >>= 5
            more = rest != (-1 if digit & 16 else 0)
            characters.append((digit | 32 if more else digit) + 48)
    return bytes(characters).decode("ascii")


def pixel_counts(label_map_HW: NDArray[np.uint8], labels: int) -> list[int]:
    """How many pixels each label got, without the background."""
    return [int(count) for count in np.bincount(label_map_HW.ravel(), minlength=labels + 1)[1 : labels + 1]]
