"""What the endpoints give: which model gave it, and for each image of the request a result or an error of its own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from sightline.models.unknown import Rule
from sightline.serve.problems import Problem


class Answer(BaseModel):
    """Which model gave it."""

    model: str = Field(description="what people call the model", examples=["ViT-B-32/laion2b_s34b_b79k"])
    revision: str = Field(description="sha256 of its weights", examples=["9f86d081884c7d659a2feaa0c55ad015"])
    artifact: str = Field(
        description="sha256 of the artifact's description, which names its files by theirs; of other models, the revision"
    )


class Prediction(BaseModel):
    label: str
    score: float = Field(description="probability among the labels of this request (softmax of the logits)")
    logit: float = Field(description="logit scale × cosine similarity of image and label")


class Known(BaseModel):
    """Whether the image shows any of the labels: it does where `score` reaches `threshold`."""

    rule: Rule
    score: float
    threshold: float


class Classified(BaseModel):
    predictions: list[Prediction] = Field(description="most probable label first")
    unknown: bool | None = Field(default=None, description="whether none of the labels fits; null unless it was asked for")
    known: Known | None = Field(default=None, description="what `unknown` was decided by")


class Failed(BaseModel):
    """An image that cannot be answered for; its neighbours are."""

    error: Problem


class ClassifyAnswer(Answer):
    results: list[Classified | Failed] = Field(description="one for each image, in the order of the request")


class Rle(BaseModel):
    """A mask as COCO has it: run lengths down the columns, compressed to a string."""

    size: list[int] = Field(description="height, width")
    counts: str


class LabelArea(BaseModel):
    label: str
    colour: str = Field(description="its colour in the mask", examples=["#e69f00"])
    pixels: int
    fraction: float = Field(description="share of the image's pixels")
    rle: Rle | None = Field(default=None, description="with format rle: its pixels")
    scores: str | None = Field(default=None, description="with format scores: base64 of a grey PNG, 255 where the label fits best")


class Segmented(BaseModel):
    width: int
    height: int
    labels: list[LabelArea] = Field(description="in the order of the request: labels[i] has index i + 1 in the mask")
    mask: str | None = Field(
        default=None, description="with format png: base64 of a palette PNG of the image's own size; index 0 is the background"
    )


class SegmentAnswer(Answer):
    results: list[Segmented | Failed] = Field(description="one for each image, in the order of the request")


class Embedding(BaseModel):
    object: str = "embedding"
    index: int
    embedding: list[float] | str | None = Field(description="a unit vector: numbers, or base64 of little-endian float32")
    error: Problem | None = Field(default=None, description="why this image has none; its neighbours do")


class Usage(BaseModel):
    prompt_tokens: int = Field(description="tokens of the texts, without padding")
    total_tokens: int
    images: int


class EmbeddingsAnswer(Answer):
    object: str = "list"
    data: list[Embedding]
    usage: Usage


class Model(Answer):
    """A served model, and where it comes from."""

    id: str
    object: str = "model"
    owned_by: str = "sightline"
    share: float = Field(description="of the requests that name no model")
    dimension: int
    image_size: int
    precision: str = Field(description="what the image tower computes with")
    runtime: str = Field(description="by what: torch, or onnxruntime")
    cosine_difference: float = Field(description="largest difference from the golden embeddings, as 1 − cosine")
    templates: list[str] = Field(description="prompt templates unless a request gives its own")
    classes: list[str] = Field(description="classes of the corpus that it was trained on, where they are known")
    provenance: dict[str, Any] | None = Field(description="of an artifact: corpus root, run, steps, versions; else null")


class Models(BaseModel):
    object: str = "list"
    data: list[Model]


class LabelSetAnswer(BaseModel):
    name: str
    labels: list[str]
    templates: list[str] | None = None


class LabelSetNames(BaseModel):
    label_sets: list[str]


class Ready(Answer):
    status: str = "ready"
    replica: str = Field(description="who answered")
