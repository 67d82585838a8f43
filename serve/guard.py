"""What every request passes before it is read: who is it, may it ask now, is there room, until when is the answer of use.

    identity   each request has an id, its own (X-Request-Id) or a new one, which comes back and stands in the log
    peers      where only this machine may ask, others are refused, whichever port they found
    key        /v1 asks for an API key where the service has keys (401), and counts its rate (429)
    room       more requests than the replica has room for are refused at once (503), so that no queue grows
    deadline   the service's, or a shorter one of the request's own (X-Deadline-Seconds)

Nothing of a refused request's body is read. Each request ends in one line of JSON on the logger `sightline.serve`, and in the
metrics.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.serve.deadline import set_deadline
from sightline.serve.keys import ApiKey, Gate
from sightline.serve.metrics import Metrics
from sightline.serve.problems import ProblemError, failed, respond

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
LOG = logging.getLogger("sightline.serve")
NOTES = "sightline.notes"
# For typing by hand. They become the long ones before anything else is decided: no rule may hold for one of the two alone.
SHORT = {"/classify": "/v1/classify", "/segment": "/v1/segment", "/embed": "/v1/embeddings"}


@dataclass(frozen=True)
class Front:
    """How requests are let in.

    Attributes:
        keys: without any, everybody may ask.
        origins: web pages that may ask from elsewhere (CORS); none by default.
        room: requests that one replica has under way at most.
        deadline_s: how long an answer is of use.
        peers: addresses that may ask; None: all.
    """

    keys: tuple[ApiKey, ...] = ()
    origins: tuple[str, ...] = ()
    room: int = 128
    deadline_s: float = 30.0
    peers: frozenset[str] | None = None


@dataclass
class Record:
    """What the log says of a request; endpoints add notes."""

    request_id: str
    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    key: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def note(scope: Mapping[str, Any], **notes: Any) -> None:
    """Add to the request's line in the log."""
    if record := scope.get(NOTES):
        record.notes.update(notes)


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, front: Front, metrics: Metrics) -> None:
        self._app, self._front, self._metrics = app, front, metrics
        self._gate = Gate(front.keys)
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if long := SHORT.get(short := path_of(scope)):
            scope["path"] = scope["path"].removesuffix(short) + long
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        record = Record(given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex)
        scope[NOTES] = record

        async def answering(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = record.request_id
            await send(message)

        self._under_way += 1
        self._metrics.in_flight.set(self._under_way)
        try:
            try:
                self._admit(scope, headers, record)
            except ProblemError as problem:
                self._metrics.refused.labels(problem.kind).inc()
                await respond(problem)(scope, receive, answering)
                return
            await self._app(scope, receive, answering)
        except Exception:
            if not record.status:  # nothing was sent yet
                await respond(failed())(scope, receive, answering)
            raise
        finally:
            self._under_way -= 1
            self._metrics.in_flight.set(self._under_way)
            self._end(scope, record)

    def _admit(self, scope: Scope, headers: Headers, record: Record) -> None:
        """Raises: ProblemError: the request may not be answered, or not now."""
        front = self._front
        if front.peers is not None:
            here = not scope["client"] or scope["client"][0] in front.peers
            # A page from elsewhere, whose name was made to mean this machine, comes from here too, and says its name.
            if not here or host_of(headers) not in {"", "localhost", *front.peers}:
                raise ProblemError(403, "not-from-here", "this service answers its own machine only; --host lets others in")
        if not path_of(scope).startswith("/v1/"):
            return
        record.key = self._gate.admit(headers)
        if self._under_way > front.room:
            raise ProblemError(503, "overloaded", "all replicas have as much to do as they can; ask again later", retry_after_s=1)
        set_deadline(deadline_s(headers.get("x-deadline-seconds"), front.deadline_s))

    def _end(self, scope: Scope, record: Record) -> None:
        seconds = time.perf_counter() - record.began
        path = known_path(scope)
        self._metrics.requests.labels(path, record.status).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        line = {
            "at": time.time(),
            "request_id": record.request_id,
            "method": scope["method"],
            "path": path,
            "status": record.status,
            "ms": round(1000 * seconds, 2),
            "key": record.key,
            "replica": self._metrics.replica,
        }
        LOG.info(json.dumps(line | record.notes, ensure_ascii=False))


def known_path(scope: Scope) -> str:
    """The path as the app knows it: what people make up would fill the metrics."""
    route = scope.get("route")
    return getattr(route, "path", None) or ("refused" if path_of(scope).startswith("/v1/") else "other")


def path_of(scope: Scope) -> str:
    """The path without the prefix that a service may have among others of its Ray: what routes are found by."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) or "/" if path == root or path.startswith(f"{root}/") else path


def host_of(headers: Mapping[str, str]) -> str:
    """Whom a request means, without the port; empty where it does not say."""
    host = headers.get("host", "").strip().lower()
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


def deadline_s(given: str | None, most: float) -> float:
    """Raises: ProblemError: the header holds no number of seconds (422)."""
    if given is None:
        return most
    if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", given.strip()):
        raise ProblemError(422, "invalid-field", "X-Deadline-Seconds: give a number of seconds, as in 2.5")
    return min(most, float(given))
