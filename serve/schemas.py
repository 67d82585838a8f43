"""What the endpoints take and give, and how much of it.

Every way of asking (multipart form, JSON) ends in one of the three request models, validated against one set of `Limits` that
travels as pydantic's validation context: `parse(ClassifyRequest, fields, limits)`. A message names the remedy.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    model_validator,
)


@dataclass(frozen=True)
class Limits:
    """What one request may cost. Bytes are counted while they arrive, pixels are read from the file's header.

    Attributes:
        max_body_bytes: the whole request; room for one image in base64 (4/3 of its bytes).
        max_image_bytes: one image file.
        max_pixels: width × height of one image.
        max_images, max_texts: in one call of /embed.
        max_labels: in one call: a palette PNG has 256 entries, and the background takes one.
        max_label_chars, max_text_chars: one label, one text or template.
        max_templates: prompt templates of one call.
        max_prompts: labels × templates of one call: each prompt passes the text tower.
    """

    max_body_bytes: int = 16_000_000
    max_image_bytes: int = 10_000_000
    max_pixels: int = 40_000_000
    max_images: int = 64
    max_texts: int = 256
    max_labels: int = 255
    max_label_chars: int = 200
    max_text_chars: int = 2_000
    max_templates: int = 80
    max_prompts: int = 1_024


def limits_of(info: ValidationInfo) -> Limits:
    assert isinstance(info.context, Limits), "validate with parse(model, fields, limits)"
    return info.context


# ------------------------------------------------------------------------------------------------ fields


def image_bytes(value: object) -> object:
    """Base64 or a data URL becomes bytes; bytes (an upload) stay as they are."""
    if not isinstance(value, str):
        return value
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(
            "an image in text must be base64 or a data URL (data:image/png;base64,...); "
            "to upload a file with curl, write -F image=@photo.jpg"
        ) from None


def split_lines(value: object) -> object:
    """One string holds one entry a line."""
    return [line.strip() for line in value.splitlines() if line.strip()] if isinstance(value, str) else value


def split_labels(value: object) -> object:
    """One string holds labels between commas or line ends; a JSON list is taken as it is."""
    return [part.strip() for part in re.split(r"[,\n\r]", value) if part.strip()] if isinstance(value, str) else value


def as_list(value: object) -> object:
    return [value] if isinstance(value, str | bytes) else value


def check_labels(labels: list[str], info: ValidationInfo) -> list[str]:
    limits = limits_of(info)
    labels = [" ".join(label.split()) for label in labels]
    if not labels:
        raise ValueError("the label list is empty; give at least one label, as in labels=cat,dog")
    if not all(labels):
        raise ValueError("a label is empty; every label needs at least one character")
    if len(labels) > limits.max_labels:
        raise ValueError(f"{len(labels)} labels are too many; one call takes {limits.max_labels}")
    if any(len(label) > limits.max_label_chars for label in labels):
        raise ValueError(f"a label is too long; a label has at most {limits.max_label_chars} characters")
    twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if twice is not None:
        raise ValueError(f"the label {twice!r} stands in the list twice; give every label once")
    return labels


def check_templates(templates: list[str] | None, info: ValidationInfo) -> list[str] | None:
    limits = limits_of(info)
    if templates is None:
        return None
    if not templates or any("{}" not in template for template in templates):
        raise ValueError("a prompt template needs {} where the label goes, as in 'a photo of a {}'")
    if len(templates) > limits.max_templates:
        raise ValueError(f"{len(templates)} templates are too many; one call takes {limits.max_templates}")
    if any(len(template) > limits.max_text_chars for template in templates):
        raise ValueError(f"a template is too long; a template has at most {limits.max_text_chars} characters")
    return templates


def check_texts(texts: list[str], info: ValidationInfo) -> list[str]:
    limits = limits_of(info)
    if any(not text.strip() for text in texts):
        raise ValueError("a text is empty; every text needs at least one character")
    if len(texts) > limits.max_texts:
        raise ValueError(f"{len(texts)} texts are too many; one call takes {limits.max_texts}")
    if any(len(text) > limits.max_text_chars for text in texts):
        raise ValueError(f"a text is too long; a text has at most {limits.max_text_chars} characters")
    return texts


Image = Annotated[bytes, BeforeValidator(image_bytes)]
Labels = Annotated[list[str], BeforeValidator(split_labels), AfterValidator(check_labels)]
Templates = Annotated[list[str] | None, BeforeValidator(split_lines), AfterValidator(check_templates)]
Texts = Annotated[list[str], BeforeValidator(split_lines), AfterValidator(check_texts)]


# ---------------------------------------------------------------------------------------------- requests


class Strict(BaseModel):
    """A request: a field that nobody reads is refused instead of overlooked."""

    model_config = ConfigDict(extra="forbid")


class ClassifyRequest(Strict):
    image: Image
    labels: Labels
    templates: Templates = None
    top_k: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def check_prompts(self, info: ValidationInfo) -> ClassifyRequest:
        prompts = len(self.labels) * len(self.templates or ())
        if prompts > limits_of(info).max_prompts:
            raise ValueError(f"labels × templates is {prompts}; one call takes {limits_of(info).max_prompts} prompts")
        return self


class SegmentRequest(Strict):
    image: Image
    labels: Labels


class EmbedRequest(Strict):
    images: Annotated[list[Image], BeforeValidator(as_list)] = Field(default=[], validation_alias=AliasChoices("images", "image"))
    texts: Texts = Field(default=[], validation_alias=AliasChoices("texts", "text"))

    @model_validator(mode="after")
    def check_any(self, info: ValidationInfo) -> EmbedRequest:
        if not self.images and not self.texts:
            raise ValueError("there is nothing to embed; give images, texts or both")
        if len(self.images) > limits_of(info).max_images:
            raise ValueError(f"{len(self.images)} images are too many; one call takes {limits_of(info).max_images}")
        return self


Request = TypeVar("Request", ClassifyRequest, SegmentRequest, EmbedRequest)


def parse(model: type[Request], fields: Mapping[str, Any], limits: Limits) -> Request:
    """The validated request.

    Raises:
        pydantic.ValidationError: a field is missing, unknown or over a limit.
    """
    return model.model_validate(fields, context=limits)


# --------------------------------------------------------------------------------------------- responses


class Answer(BaseModel):
    """Every answer says which model gave it."""

    model: str = Field(description="what people call the model", examples=["ViT-B-32/laion2b_s34b_b79k"])
    revision: str = Field(description="sha256 of its weights", examples=["9f86d081884c7d659a2feaa0c55ad015"])


class Prediction(BaseModel):
    label: str
    score: float = Field(description="probability among the labels of this call (softmax of the logits)")
    logit: float = Field(description="logit scale × cosine similarity of image and label")


class ClassifyAnswer(Answer):
    predictions: list[Prediction] = Field(description="most probable label first")


class LabelArea(BaseModel):
    label: str
    colour: str = Field(description="its colour in the mask", examples=["#e69f00"])
    pixels: int
    fraction: float = Field(description="share of the image's pixels")


class SegmentAnswer(Answer):
    width: int
    height: int
    labels: list[LabelArea] = Field(description="in the order of the request: labels[i] has index i + 1 in the mask")
    mask: str = Field(description="base64 of a palette PNG of the image's own size; index 0 is the background")


class EmbedAnswer(Answer):
    dimension: int
    images: list[list[float]] = Field(description="one unit vector per image, in the order of the request")
    texts: list[list[float]] = Field(description="one unit vector per text, in the order of the request")


class Ready(Answer):
    status: str = "ready"
    templates: list[str] = Field(description="prompt templates that /classify uses unless told otherwise")
    classes: list[str] = Field(description="classes of the corpus that it was trained on, where they are known")
