"""One small picture to try a model with: the page offers it, `/docs` shows it, and `sightline serve --check` sends it."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LABELS = ("red three", "blue seven", "green five")
TEXTS = ("a red three", "a blue seven")
TEMPLATES = ("{}", "a picture of {}")
SIDE = 192


def picture() -> Image.Image:
    """A red 3 and a blue 7 on a mottled ground."""
    noise = np.random.default_rng(0).integers(96, 160, (6, 6, 3), dtype=np.uint8)
    scene = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(scene)
    for digit, colour, centre in (("3", (214, 40, 40), (58, 84)), ("7", (36, 80, 220), (134, 112))):
        draw.text(
            centre,
            digit,
            fill=colour,
            font=ImageFont.load_default(112),
            anchor="mm",
            stroke_width=3,
            stroke_fill=colour,
        )
    return scene


def jpeg() -> bytes:
    file = io.BytesIO()
    picture().save(file, "JPEG", quality=85)
    return file.getvalue()


def data_url() -> str:
    """The picture, small enough to be read in documentation."""
    file = io.BytesIO()
    picture().resize((48, 48)).save(file, "WEBP", quality=50)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
