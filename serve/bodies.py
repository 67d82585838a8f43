"""Request bodies: a multipart form or JSON, both to the same fields, and never more bytes than the limit.

A body is counted while it arrives, so that neither a wrong Content-Length nor none (chunked) gets past.
"""

from __future__ import annotations

from typing import Any

import pydantic_core
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.types import Message, Receive

from sightline.serve.limits import Limits
from sightline.serve.problems import ProblemError

FORM, JSON = "multipart/form-data", "application/json"
# In a form, several values of these make one list; of any other field there is one.
LISTS = ("images", "image", "input")
LINES = ("labels", "templates")


async def fields(request: Request, limits: Limits) -> dict[str, Any]:
    """The fields of a request's body; an uploaded file is bytes.

    Raises:
        ProblemError: the body is too large (413), of another type (415), or malformed (400).
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise too_large(limits)
    counted = Request(request.scope, counting(request.receive, limits))
    match request.headers.get("content-type", "").partition(";")[0].strip().lower():
        case "multipart/form-data":
            return await form_fields(counted, limits)
        case "application/json":
            return json_fields(await counted.body())
    raise ProblemError(415, "unsupported-media-type", f"send the request as {FORM} or as {JSON}, and say so in Content-Type")


def counting(receive: Receive, limits: Limits) -> Receive:
    """`receive`, until the body has more bytes than it may have."""
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > limits.max_body_bytes:
            raise too_large(limits)
        return message

    return counted


def too_large(limits: Limits) -> ProblemError:
    return ProblemError(413, "body-too-large", f"the request is too large; it may have {limits.max_body_bytes:,} bytes")


def json_fields(body: bytes) -> dict[str, Any]:
    try:
        value = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ProblemError(400, "malformed-json", f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ProblemError(422, "invalid-field", 'the body must be a JSON object, as in {"image": "...", "labels": ["cat"]}')
    return value


async def form_fields(request: Request, limits: Limits) -> dict[str, Any]:
    """Starlette refuses malformed forms with 400 by itself."""
    most = limits.max_labels + limits.max_texts + limits.max_templates + limits.max_images
    values: dict[str, list[str | bytes]] = {}
    async with request.form(max_files=limits.max_images, max_fields=most) as form:
        for name, value in form.multi_items():
            values.setdefault(name, []).append(await value.read() if isinstance(value, UploadFile) else value)
    return {name: joined(name, several) for name, several in values.items()}


def joined(name: str, values: list[str | bytes]) -> Any:
    """The values of one form field as what JSON would have had in its place."""
    if name in LISTS and len(values) > 1:
        return values
    if name in LINES:
        return "\n".join(value if isinstance(value, str) else value.decode(errors="replace") for value in values)
    if len(values) > 1:
        raise ProblemError(422, "invalid-field", f"{name}: this field is given {len(values)} times; give it once")
    return values[0]
