"""What FastAPI cannot say of our endpoints by itself: each takes two kinds of body. Examples are real: they run as they stand."""

from __future__ import annotations

from typing import Any

from sightline.models.unknown import RULES
from sightline.serve import example, problems
from sightline.serve.bodies import FORM, JSON

Schema = dict[str, Any]

FIELDS = {
    "classify": ("image", "images", "labels", "label_set", "templates", "top_k", "unknown", "threshold", "rule", "model"),
    "segment": ("image", "images", "labels", "label_set", "format", "model"),
    "embeddings": ("input", "model", "encoding_format", "dimensions", "user"),
    "labels": ("labels", "templates"),
}
REQUIRED = {"embeddings": ["input"], "labels": ["labels"]}
ONE_OF = {name: [{"required": ["image"]}, {"required": ["images"]}] for name in ("classify", "segment")}
# Either of two does, and the examples show the first.
ALTERNATIVES = ("images", "label_set", "model", "threshold", "rule", "dimensions", "user")


def body(name: str) -> Schema:
    """The description of an endpoint's body, as JSON and, where files may come, as a form."""
    known = json_fields()
    example_of = {field: known[field]["example"] for field in shown(name)}
    content: Schema = {JSON: {"schema": described(known, name), "example": example_of}}
    if name != "embeddings":
        content[FORM] = {"schema": described(form_fields(), name)}
    return {"requestBody": {"required": True, "content": content}}


def shown(name: str) -> list[str]:
    """Fields of the example."""
    return [field for field in FIELDS[name] if field not in ALTERNATIVES]


def described(known: dict[str, Schema], name: str) -> Schema:
    properties = {field: {key: value for key, value in known[field].items() if key != "example"} for field in FIELDS[name]}
    schema: Schema = {"type": "object", "additionalProperties": False, "properties": properties}
    if name in REQUIRED:
        schema["required"] = REQUIRED[name]
    if name in ONE_OF:
        schema["oneOf"] = ONE_OF[name]
    return schema


def json_fields() -> dict[str, Schema]:
    """Every field of every endpoint, as JSON has it."""
    image = {"type": "string", "description": "base64 or a data URL", "example": example.data_url()}
    text = {"type": "string"}
    return {
        "image": image,
        "images": {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "instead of `image`: several"},
        "labels": {"type": "array", "items": text, "minItems": 1, "uniqueItems": True, "example": list(example.LABELS)},
        "label_set": {"type": "string", "description": "instead of `labels`: the name of a registered set"},
        "templates": {
            "type": "array",
            "items": text,
            "minItems": 1,
            "description": "prompts with {} where the label goes; by default the model's own",
            "example": list(example.TEMPLATES),
        },
        "input": {
            "oneOf": [text, {"type": "array", "items": text, "minItems": 1}],
            "description": "a text or several; an image is a data URL",
            "example": [*example.TEXTS, example.data_url()],
        },
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "example": "float"},
        "dimensions": {"type": "integer", "description": "those that the model has, if any"},
        "user": {"type": "string", "description": "not used"},
        "top_k": {"type": "integer", "minimum": 1, "description": "return the best k labels; by default all", "example": 2},
        "unknown": {
            "type": "boolean",
            "description": "say whether any label fits; without `threshold`: better than other things that may be there",
            "example": True,
        },
        "threshold": {"type": "number", "description": "the image is unknown where the rule's score is below it"},
        "rule": {"type": "string", "enum": list(RULES), "description": "maximum logit, maximum probability, or energy"},
        "format": {
            "type": "string",
            "enum": ["png", "rle", "scores"],
            "description": "a palette PNG, run lengths in COCO's form, or a score map for each label",
            "example": "png",
        },
        "model": {
            "type": "string",
            "description": "a served model's name, or the start of its artifact's digest",
        },
    }


def form_fields() -> dict[str, Schema]:
    """Every field of every endpoint, as a form has it."""
    file = {"type": "string", "format": "binary"}
    return json_fields() | {
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
    }


def problem_responses() -> dict[int | str, Schema]:
    """What may come back instead of an answer."""
    problem = {
        "description": "A problem document; its detail says what to do.",
        "content": {problems.MEDIA_TYPE: {"schema": problems.Problem.model_json_schema()}},
    }
    return dict.fromkeys((400, 401, 403, 404, 409, 413, 415, 422, 429, 503), problem)
