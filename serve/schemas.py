"""What the endpoints take.

Every way of asking (multipart form, JSON) ends in one of these request models, validated against one set of `Limits` that travels
as pydantic's validation context: `parse(ClassifyRequest, fields, limits)`. A message names the remedy. What they give is in
answers.py.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

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

from sightline.models.segment import SYNONYMS
from sightline.models.unknown import Rule
from sightline.serve.limits import Limits, limits_of

IMAGE_HINT = (
    "an image in text must be base64 or a data URL (data:image/png;base64,...); "
    "to upload a file with curl, write -F image=@photo.jpg"
)


@dataclass(frozen=True)
class ImageUrl:
    """An image that is to be fetched."""

    url: str


ImageData = bytes | ImageUrl


# ------------------------------------------------------------------------------------------------ fields


def image_data(value: object, info: ValidationInfo) -> object:
    """Base64 or a data URL becomes bytes; bytes (an upload) stay as they are.

    Only the form is looked at: what the bytes are is found out image by image, so that one bad image fails alone.
    """
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(IMAGE_HINT)
    if value.lower().startswith(("http://", "https://")):
        if not limits_of(info).image_urls:
            raise ValueError("this service fetches no images; send the bytes, as a file, base64 or a data URL")
        return ImageUrl(value)
    return base64_bytes(value.partition(",")[2] if value.startswith("data:") else value)


def base64_bytes(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(IMAGE_HINT) from None


def check_images(images: list[ImageData], info: ValidationInfo) -> list[ImageData]:
    if not images:
        raise ValueError("there is no image; give at least one")
    if len(images) > limits_of(info).max_images:
        raise ValueError(f"{len(images)} images are too many; one request takes {limits_of(info).max_images}")
    if (urls := sum(isinstance(image, ImageUrl) for image in images)) > limits_of(info).max_image_urls:
        raise ValueError(
            f"{urls} images by URL are too many; one request takes {limits_of(info).max_image_urls}, or send their bytes"
        )
    return images


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
    if len(labels) > limits.max_labels:
        raise ValueError(f"{len(labels)} labels are too many; one request takes {limits.max_labels}")
    if any(len(label) > limits.max_label_chars for label in labels):
        raise ValueError(f"a label is too long; a label has at most {limits.max_label_chars} characters")
    labels = [" ".join(label.split()) for label in labels]
    if not labels:
        raise ValueError("the label list is empty; give at least one label, as in labels=cat,dog")
    if not all(labels):
        raise ValueError("a label is empty; every label needs at least one character")
    twice = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
    if twice is not None:
        raise ValueError(f"the label {twice!r} stands in the list twice; give every label once")
    return labels


def check_templates(templates: list[str], info: ValidationInfo) -> list[str]:
    limits = limits_of(info)
    if not templates or any("{}" not in template for template in templates):
        raise ValueError("a prompt template needs {} where the label goes, as in 'a photo of a {}'")
    if len(templates) > limits.max_templates:
        raise ValueError(f"{len(templates)} templates are too many; one request takes {limits.max_templates}")
    if any(len(template) > limits.max_text_chars for template in templates):
        raise ValueError(f"a template is too long; a template has at most {limits.max_text_chars} characters")
    return templates


Image = Annotated[ImageData, BeforeValidator(image_data)]
Images = Annotated[list[Image], BeforeValidator(as_list), AfterValidator(check_images)]
Labels = Annotated[list[str], BeforeValidator(split_labels), AfterValidator(check_labels)]
Templates = Annotated[list[str], BeforeValidator(split_lines), AfterValidator(check_templates)]


# ---------------------------------------------------------------------------------------------- requests


class Strict(BaseModel):
    """A request: a field that nobody reads is refused instead of overlooked."""

    model_config = ConfigDict(extra="forbid")


class Asked(Strict):
    """What every request may say: which of the served models is meant (its name, or the start of its artifact's digest)."""

    model: str | None = Field(default=None, max_length=300)


class Labelled(Asked):
    """Images and the labels for them, given here or registered before."""

    images: Images = Field(validation_alias=AliasChoices("image", "images"))
    labels: Labels | None = None
    label_set: str | None = None
    templates: Templates | None = None

    @model_validator(mode="after")
    def check_labels(self, info: ValidationInfo) -> Self:
        if self.labels is None and self.label_set is None:
            raise ValueError("labels: this field is missing; give labels, or the name of a label_set")
        if self.labels is not None and self.label_set is not None:
            raise ValueError("give labels or a label_set, not both")
        check_prompts(self.labels or [], self.templates, limits_of(info))
        return self


class ClassifyRequest(Labelled):
    top_k: int | None = Field(default=None, ge=1)
    unknown: bool = False
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    rule: Rule = "logit"

    @model_validator(mode="after")
    def check_rule(self) -> Self:
        if self.unknown and self.threshold is None and self.rule != "logit":
            raise ValueError(f"the rule {self.rule} needs a threshold; give one, or leave the rule out")
        return self


class SegmentRequest(Labelled):
    format: Literal["png", "rle", "scores"] = "png"

    @model_validator(mode="after")
    def check_format(self, info: ValidationInfo) -> Self:
        check_masks(self.labels or [], self, limits_of(info))
        if self.templates is not None:
            raise ValueError("templates: segmentation uses the model's own; leave this field out")
        return self


class EmbeddingsRequest(Strict):
    """OpenAI's shape; an image is a data URL among the texts. `texts_or_images` says which each input is."""

    input: list[str]
    model: str | None = Field(default=None, max_length=300)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1)
    user: str | None = None

    @model_validator(mode="before")
    @classmethod
    def check_input(cls, fields: Any, info: ValidationInfo) -> Any:
        limits, given = limits_of(info), fields.get("input")
        if isinstance(given, str):
            given = [given]
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise ValueError("input: give a text, or a list of texts and of images as data URLs; token ids are not taken")
        images = sum(is_image(one) for one in given)
        texts = [one for one in given if not is_image(one)]
        if not given:
            raise ValueError("input: there is nothing to embed; give at least one text or image")
        if any(not text.strip() for text in texts):
            raise ValueError("input: a text is empty; every text needs at least one character")
        if images > limits.max_images:
            raise ValueError(f"input: {images} images are too many; one request takes {limits.max_images}")
        if len(texts) > limits.max_texts:
            raise ValueError(f"input: {len(texts)} texts are too many; one request takes {limits.max_texts}")
        if any(len(text) > limits.max_text_chars for text in texts):
            raise ValueError(f"input: a text is too long; a text has at most {limits.max_text_chars} characters")
        return fields | {"input": given}


class LabelSetRequest(Strict):
    labels: Labels
    templates: Templates | None = None

    @model_validator(mode="after")
    def check(self, info: ValidationInfo) -> Self:
        check_prompts(self.labels, self.templates, limits_of(info))
        return self


def is_image(text: str) -> bool:
    """Whether an input for embedding is an image."""
    return text.startswith("data:image/") and ";base64," in text[:100]


def check_masks(labels: list[str], request: SegmentRequest, limits: Limits) -> None:
    """Whether so many masks may be made of labels, each of which may be several names."""
    names = sum(1 + label.count(SYNONYMS) for label in labels)
    if names > limits.max_prompts:
        raise ValueError(f"the labels have {names} names between them; one request takes {limits.max_prompts}")
    maps = len(request.images) * len(labels)
    if request.format == "scores" and maps > limits.max_score_maps:
        raise ValueError(f"labels × images is {maps}; one request takes {limits.max_score_maps} score maps")


def check_prompts(labels: list[str], templates: list[str] | None, limits: Limits) -> None:
    prompts = len(labels) * len(templates or ())
    if prompts > limits.max_prompts:
        raise ValueError(f"labels × templates is {prompts}; one request takes {limits.max_prompts} prompts")


Request = TypeVar("Request", bound=Strict)


def parse(model: type[Request], fields: Mapping[str, Any], limits: Limits) -> Request:
    """The validated request.

    Raises:
        pydantic.ValidationError: a field is missing, unknown or over a limit.
    """
    return model.model_validate(fields, context=limits)
