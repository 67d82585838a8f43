"""The HTTP face of a service: /v1, health, metrics, the page, and OpenAPI at /docs. Without Ray.

`build(service)` gives an ASGI app: Ray Serve runs it inside a replica (app.py), tests run it as it is.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.middleware.cors import CORSMiddleware

from sightline import __version__
from sightline.serve import bodies, example, metrics, openapi, problems
from sightline.serve.answers import (
    Answer,
    ClassifyAnswer,
    EmbeddingsAnswer,
    LabelSetAnswer,
    LabelSetNames,
    Models,
    Ready,
    SegmentAnswer,
)
from sightline.serve.guard import Front, Guard, note
from sightline.serve.label_sets import LabelSet
from sightline.serve.schemas import ClassifyRequest, EmbeddingsRequest, LabelSetRequest, SegmentRequest, parse
from sightline.serve.service import Service

PAGE = Path(__file__).parent / "page" / "index.html"
# The page carries all of its own style and script, and talks to nobody but this service.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'"
)
PNG, JSON = "image/png", "application/json"

DESCRIPTION = """
Classify, segment and embed images with labels typed at request time.

Send images as files of a multipart form, or in JSON as base64 or data URLs. Every answer names the model, the sha256 of its
weights and of its artifact. Errors are problem documents (RFC 9457) whose `detail` says what to do; of several images, one that
cannot be read has an error of its own. 429 and 503 say in `Retry-After` when to ask again. A service that has keys wants
`Authorization: Bearer KEY`.
"""


def build(service: Service, front: Front | None = None) -> FastAPI:
    """The app that answers for a service."""
    front = front or Front()
    limits = service.limits
    app = FastAPI(title="Sightline", version=__version__, description=DESCRIPTION, redoc_url=None)
    problems.install(app)
    app.add_middleware(Guard, front=front, metrics=service.metrics)
    if front.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=front.origins, allow_methods=["GET", "POST", "PUT", "DELETE"], allow_headers=["*"]
        )
    refusals = openapi.problem_responses()

    @app.post("/v1/classify", openapi_extra=openapi.body("classify"), responses=refusals)
    async def classify(request: Request) -> ClassifyAnswer:
        """Which of the labels fits each image: probabilities among them, the most probable first; and whether any does."""
        asked = parse(ClassifyRequest, await bodies.fields(request, limits), limits)
        return noted(request, await service.classify(asked), images=len(asked.images), label_set=asked.label_set)

    @app.post(
        "/v1/segment",
        openapi_extra=openapi.body("segment"),
        response_model=SegmentAnswer,
        responses=refusals | {200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def segment(request: Request) -> Any:
        """Where each label is, at the image's own size: a palette PNG, run lengths in COCO's form, or score maps.

        In the palette PNG, index 0 is the background and index i + 1 is labels[i]. With `Accept: image/png` the mask of a single
        image comes alone.
        """
        asked = parse(SegmentRequest, await bodies.fields(request, limits), limits)
        if prefers_png(request.headers.get("accept", "")):
            served, png = await service.mask(asked)
            note(request.scope, **served.who, images=1)
            headers = {"Sightline-Revision": served.model.revision, "Sightline-Artifact": served.artifact}
            return Response(png, media_type=PNG, headers=headers)
        return noted(request, await service.segment(asked), images=len(asked.images), label_set=asked.label_set)

    @app.post("/v1/embeddings", openapi_extra=openapi.body("embeddings"), responses=refusals)
    async def embeddings(request: Request) -> EmbeddingsAnswer:
        """Unit vectors of texts and images in one space, in OpenAI's shape: their dot product is the cosine similarity.

        An image is a data URL (`data:image/jpeg;base64,...`) among the inputs.
        """
        asked = parse(EmbeddingsRequest, await bodies.fields(request, limits), limits)
        answer = await service.embed(asked)
        return noted(request, answer, images=answer.usage.images, texts=len(asked.input) - answer.usage.images)

    @app.get("/v1/models", responses=refusals)
    async def models() -> Models:
        """What is served, by which share of the requests, and where it comes from, down to the corpus."""
        return service.models()

    @app.get("/v1/labels", responses=refusals)
    async def label_sets() -> LabelSetNames:
        """The names of the registered label sets."""
        return LabelSetNames(label_sets=await asyncio.to_thread(service.label_sets.names))

    @app.put("/v1/labels/{name}", openapi_extra=openapi.body("labels"), responses=refusals | {201: {"model": LabelSetAnswer}})
    async def put_labels(name: str, request: Request, response: Response) -> LabelSetAnswer:
        """Register labels, perhaps with templates, to be used by name: {"label_set": NAME}. Replaces what was there."""
        asked = parse(LabelSetRequest, await bodies.fields(request, limits), limits)
        new = await asyncio.to_thread(service.label_sets.put, name, LabelSet(asked.labels, asked.templates))
        response.status_code = 201 if new else 200
        return LabelSetAnswer(name=name, labels=asked.labels, templates=asked.templates)

    @app.get("/v1/labels/{name}", responses=refusals)
    async def get_labels(name: str) -> LabelSetAnswer:
        """A registered label set."""
        found = await asyncio.to_thread(service.label_sets.get, name)
        return LabelSetAnswer(name=name, labels=found.labels, templates=found.templates)

    @app.delete("/v1/labels/{name}", status_code=204, responses=refusals)
    async def delete_labels(name: str) -> None:
        """Forget a label set."""
        await asyncio.to_thread(service.label_sets.delete, name)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Ready:
        """The model is loaded, and has proved itself if it is an artifact. Says which model it is."""
        return service.ready()

    @app.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
    async def scrape() -> Response:
        """For Prometheus: the figures of all replicas."""
        text = await asyncio.to_thread(metrics.everybodys, service.metrics, service.board)
        return Response(text, media_type=metrics.CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/example.jpg", include_in_schema=False)
    async def picture() -> Response:
        return Response(example.jpeg(), media_type="image/jpeg")

    return app


def noted(request: Request, answer: Any, **notes: Any) -> Any:
    """The answer, after its model and the notes went to the request's line in the log."""
    assert isinstance(answer, Answer)
    note(request.scope, model=answer.model, artifact=answer.artifact, **notes)
    return answer


def prefers_png(accept: str) -> bool:
    """Whether an Accept header names image/png, and no JSON of a higher or the same weight."""
    weights = {PNG: 0.0, JSON: 0.0}
    for entry in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        if kind in weights and weight.replace(".", "", 1).isdecimal() and weight.isascii():
            weights[kind] = float(weight)
    return weights[PNG] > weights[JSON]
