"""Errors as RFC 9457 problem documents: {type, title, status, detail}, the detail with the remedy in it.

Whatever goes wrong inside the app leaves as `application/problem+json`, FastAPI's and Starlette's own errors among them. What
is the server's fault says so and nothing else: no path, no traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from math import ceil
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """The body of every error."""

    type: str = Field(examples=["urn:problem-type:sightline:not-an-image"])
    title: str = Field(examples=["Bad Request"])
    status: int = Field(examples=[400])
    detail: str = Field(examples=["the file is no image that this service can read; send JPEG, PNG or WebP"])


class ProblemError(Exception):
    """Raise it anywhere in a request; the client gets it as a problem document.

    Args:
        status: the HTTP status.
        kind: a few words with hyphens, the last part of the problem's type.
        detail: one sentence that names the remedy.
        retry_after_s: when asking again is of use, where it is.
    """

    def __init__(self, status: int, kind: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.retry_after_s = status, kind, detail, retry_after_s

    @property
    def document(self) -> Problem:
        return Problem(
            type=f"urn:problem-type:sightline:{self.kind}",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
        )


def respond(problem: ProblemError, headers: dict[str, str] | None = None) -> JSONResponse:
    body = problem.document.model_dump()
    headers = dict(headers or {})
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, ceil(problem.retry_after_s)))
    return JSONResponse(body, problem.status, headers=headers, media_type=MEDIA_TYPE)


def failed() -> ProblemError:
    """Of a failure of ours: what it was stands in the log alone."""
    return ProblemError(500, "internal-error", "the server failed on this request; its log says why")


def invalid(errors: Sequence[Any]) -> ProblemError:
    """pydantic's errors as one problem."""
    return ProblemError(422, "invalid-field", sentence(errors))


def sentence(errors: Sequence[Any]) -> str:
    """pydantic's errors in one line: the field, a colon, what to do about it."""
    return "; ".join(dict.fromkeys(clause(error) for error in errors))


def clause(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"] if part not in ("body", "query"))
    message = str(error["msg"]).removeprefix("Value error, ")
    match error["type"]:
        case "missing":
            message = "this field is missing"
        case "extra_forbidden":
            message = "there is no such field; see /docs for those of this endpoint"
    return f"{field}: {message}" if field else message


def install(app: FastAPI) -> None:
    """Let every error of the app leave as a problem document."""

    @app.exception_handler(ProblemError)
    async def ours(request: Request, error: ProblemError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(ValidationError)
    async def invalid_body(request: Request, error: ValidationError) -> JSONResponse:
        return respond(invalid(error.errors()))

    @app.exception_handler(RequestValidationError)
    async def invalid_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(invalid(error.errors()))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        detail = str(error.detail)
        match error.status_code:
            case 404:
                detail = f"there is nothing at {request.url.path}; /docs lists the endpoints"
            case 405:
                detail = f"{request.url.path} does not answer {request.method}; /docs lists the endpoints"
        kind = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        return respond(ProblemError(error.status_code, kind, detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this answer, so that the server's log gets the traceback.
        return respond(failed())
