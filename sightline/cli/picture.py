"""One picture of what a model sees: scenes, the captions it picked for them, and its masks beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

# The colours of a colour-blind-safe palette (Okabe and Ito 2008), for labels in turn.
PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
SIDE, GAP, TEXT = 144, 8, 44
PAPER, INK, WRONG = (255, 255, 255), (30, 30, 30), (190, 30, 30)


@dataclass(frozen=True)
class Panel:
    """One scene: its pixels, what the model said of it, whether that is right, and its mask (0 is background)."""

    rgb_HWC: NDArray[np.uint8]
    caption: str
    right: bool
    mask_HW: NDArray[np.uint8]


def draw(panels: Sequence[Panel], path: Path, columns: int = 4) -> None:
    """Write a contact sheet as PNG: per panel the scene, the scene under its mask, and the caption below."""
    width, height = 2 * SIDE + GAP, SIDE + TEXT
    lines = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * (width + 2 * GAP) + GAP, lines * (height + GAP) + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, panel in enumerate(panels):
        left, top = GAP + (i % columns) * (width + 2 * GAP), GAP + (i // columns) * (height + GAP)
        sheet.paste(_enlarged(panel.rgb_HWC), (left, top))
        sheet.paste(_enlarged(under_mask(panel.rgb_HWC, panel.mask_HW)), (left + SIDE + GAP, top))
        for row, line in enumerate(_wrapped(panel.caption, font, width)[:2]):
            pen.text((left, top + SIDE + 3 + 17 * row), line, INK if panel.right else WRONG, font)
    sheet.save(path)


def under_mask(rgb_HWC: NDArray[np.uint8], mask_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The scene in pale grey with each label's pixels in the label's colour."""
    grey_HWC = np.repeat(rgb_HWC.mean(2, keepdims=True) / 2 + 110, 3, axis=2)
    for number in np.unique(mask_HW[mask_HW > 0]):
        grey_HWC[mask_HW == number] = PALETTE[(int(number) - 1) % len(PALETTE)]
    return grey_HWC.astype(np.uint8)


def _enlarged(rgb_HWC: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(rgb_HWC).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
