"""What FastAPI cannot say of our endpoints by itself: each takes two kinds of body. Examples are real: they run as they stand."""

from __future__ import annotations

from typing import Any

from sightline.serve import example, problems
from sightline.serve.bodies import FORM, JSON

Schema = dict[str, Any]

REQUIRED = ("image", "labels")


def body(*fields: str) -> Schema:
    """The description of a body with these fields, as JSON and as a form."""
    kinds = {JSON: json_fields(), FORM: form_fields()}
    content = {kind: {"schema": described(known, fields)} for kind, known in kinds.items()}
    return {"requestBody": {"required": True, "content": content}}


def described(known: dict[str, Schema], fields: tuple[str, ...]) -> Schema:
    return {
        "type": "object",
        "required": [field for field in fields if field in REQUIRED],
        "additionalProperties": False,
        "properties": {field: known[field] for field in fields},
    }


def json_fields() -> dict[str, Schema]:
    """Every field of every endpoint, as JSON has it."""
    image = {"type": "string", "description": "base64 or a data URL", "example": example.data_url()}
    text = {"type": "string"}
    return {
        "image": image,
        "images": {"type": "array", "items": image, "example": [example.data_url()]},
        "labels": {"type": "array", "items": text, "minItems": 1, "example": list(example.LABELS)},
        "templates": {
            "type": "array",
            "items": text,
            "minItems": 1,
            "description": "prompts with {} where the label goes; by default the model's own",
            "example": list(example.TEMPLATES),
        },
        "texts": {"type": "array", "items": text, "example": list(example.TEXTS)},
        "top_k": {"type": "integer", "minimum": 1, "description": "return the best k labels; by default all", "example": 2},
    }


def form_fields() -> dict[str, Schema]:
    """Every field of every endpoint, as a form has it."""
    file = {"type": "string", "format": "binary"}
    return {
        "image": file,
        "images": {"type": "array", "items": file},
        "labels": {
            "type": "string",
            "description": "commas or line ends between the labels; the field may come several times",
            "example": ", ".join(example.LABELS),
        },
        "templates": {
            "type": "string",
            "description": "one prompt a line, with {} where the label goes; by default the model's own",
            "example": "\n".join(example.TEMPLATES),
        },
        "texts": {"type": "string", "description": "one text a line", "example": "\n".join(example.TEXTS)},
        "top_k": json_fields()["top_k"],
    }


def problem_responses() -> dict[int | str, Schema]:
    """What may come back instead of an answer."""
    problem = {
        "description": "A problem document; its detail says what to do.",
        "content": {problems.MEDIA_TYPE: {"schema": problems.Problem.model_json_schema()}},
    }
    return dict.fromkeys((400, 413, 415, 422), problem)
