"""How much one request may cost. The limits travel as pydantic's validation context (see schemas.py)."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationInfo


@dataclass(frozen=True)
class Limits:
    """Bytes are counted while they arrive, pixels are read from the file's header: both before anything is decoded.

    Attributes:
        max_body_bytes: the whole request; room for one image in base64 (4/3 of its bytes).
        max_image_bytes: one image file.
        max_pixels: width × height of one image.
        max_images: in one request.
        max_image_urls: of these, by URL: each may be as long as one image, and is asked of somebody else.
        max_texts: of one request for embeddings.
        max_labels: in one request: a palette PNG has 256 entries, and the background takes one.
        max_label_chars, max_text_chars: one label, one text or template.
        max_templates: prompt templates of one request.
        max_prompts: labels × templates of one request, or names in the labels of one for masks: each passes the text tower.
        max_score_maps: labels × images of one request for score maps, each of which is an image of its own.
        image_urls: whether an image may be named by a URL, which this machine then asks.
    """

    max_body_bytes: int = 16_000_000
    max_image_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    max_images: int = 64
    max_image_urls: int = 8
    max_texts: int = 256
    max_labels: int = 255
    max_label_chars: int = 200
    max_text_chars: int = 2_000
    max_templates: int = 80
    max_prompts: int = 1_024
    max_score_maps: int = 64
    image_urls: bool = False


def limits_of(info: ValidationInfo) -> Limits:
    assert isinstance(info.context, Limits), "validate with parse(model, fields, limits)"
    return info.context
