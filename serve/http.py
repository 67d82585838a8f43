"""The HTTP face of a service: three questions, two health checks, the page, and OpenAPI at /docs. Without Ray.

`build(service)` gives an ASGI app: Ray Serve runs it inside a replica (app.py), tests run it as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from sightline import __version__
from sightline.serve import bodies, example, openapi, problems
from sightline.serve.schemas import (
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    Ready,
    SegmentAnswer,
    SegmentRequest,
    parse,
)
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

Send an image as a file of a multipart form, or in JSON as base64 or a data URL. Every answer names the model and the sha256 of its
weights. Errors are problem documents (RFC 9457) whose `detail` says what to do.
"""


def build(service: Service) -> FastAPI:
    """The app that answers for a service."""
    limits = service.limits
    app = FastAPI(
        title="Sightline",
        version=__version__,
        description=DESCRIPTION,
        redoc_url=None,
    )
    problems.install(app)
    answers = openapi.problem_responses()

    @app.post("/classify", openapi_extra=openapi.body("image", "labels", "templates", "top_k"), responses=answers)
    async def classify(request: Request) -> ClassifyAnswer:
        """Which of the labels fits the image: probabilities among them, the most probable first."""
        return await service.classify(parse(ClassifyRequest, await bodies.fields(request, limits), limits))

    @app.post(
        "/segment",
        openapi_extra=openapi.body("image", "labels"),
        response_model=SegmentAnswer,
        responses=answers | {200: {"content": {PNG: {"schema": {"type": "string", "format": "binary"}}}}},
    )
    async def segment(request: Request) -> Any:
        """Where each label is: a mask of the image's own size and its legend; with `Accept: image/png` the mask alone.

        In the palette PNG, index 0 is the background and index i + 1 is labels[i].
        """
        asked = parse(SegmentRequest, await bodies.fields(request, limits), limits)
        if prefers_png(request.headers.get("accept", "")):
            headers = {"Sightline-Revision": service.engine.model.revision}
            return Response((await service.mask(asked)).png(), media_type=PNG, headers=headers)
        return await service.segment(asked)

    @app.post("/embed", openapi_extra=openapi.body("images", "texts"), responses=answers)
    async def embed(request: Request) -> EmbedAnswer:
        """Unit vectors of images and texts in one space: their dot product is the cosine similarity."""
        return await service.embed(parse(EmbedRequest, await bodies.fields(request, limits), limits))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    async def readyz() -> Ready:
        """The model is loaded, and has proved itself if it is an artifact. Says which model it is."""
        return service.ready()

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/example.jpg", include_in_schema=False)
    async def picture() -> Response:
        return Response(example.jpeg(), media_type="image/jpeg")

    return app


def prefers_png(accept: str) -> bool:
    """Whether an Accept header names image/png, and no JSON of a higher or the same weight."""
    weights = {PNG: 0.0, JSON: 0.0}
    for entry in accept.lower().split(","):
        kind, *parameters = (part.strip() for part in entry.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        if kind in weights and weight.replace(".", "", 1).isdigit():
            weights[kind] = float(weight)
    return weights[PNG] > weights[JSON]
