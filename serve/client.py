"""A client that asks a running service one question of each kind: what the demo and `sightline serve --check` show."""

from __future__ import annotations

import base64
import pprint
import time
from collections.abc import Sequence
from typing import Any

import httpx

# Generous: a first request may embed many labels on a slow machine.
TIMEOUT_S = 120.0
RETRY_S, RETRY_EVERY_S = 10.0, 0.25
SHOWN_CHARS, SHOWN_ITEMS = 64, 4


def smoke(url: str, image: bytes, labels: Sequence[str]) -> dict[str, Any]:
    """One real request to each endpoint: {"classify": ..., "segment": ..., "embeddings": ...} with the answers as they came.

    Raises:
        ValueError: the service refused; the message is its own.
        ConnectionError: nothing answers there.
    """
    data_url = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        return {
            "classify": ask(client, "/v1/classify", files={"image": image}, data={"labels": list(labels), "unknown": "true"}),
            "segment": ask(client, "/v1/segment", files={"image": image}, data={"labels": list(labels)}),
            "embeddings": ask(client, "/v1/embeddings", json={"input": [data_url, *labels]}),
        }


def ask(client: httpx.Client, path: str, **body: Any) -> Any:
    """The answer to a question, asked again where the service says so, or where it was not there.

    A front door that died is back within five seconds, and knows its routes a moment later (until then it answers 404 or 500 in
    plain text). Asking twice is harmless: an answer changes nothing.
    """
    deadline = time.monotonic() + RETRY_S
    while True:
        try:
            response = client.post(path, **body)
            problem = response.headers.get("content-type") == "application/problem+json"
            if not response.is_error:
                return response.json()
            if time.monotonic() > deadline or (problem and "retry-after" not in response.headers):
                detail = response.json()["detail"] if problem else response.text
                raise ValueError(f"{path}: {response.status_code} {detail}")
            wait_s = float(response.headers.get("retry-after", RETRY_EVERY_S))
        except httpx.HTTPError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(f"{client.base_url} does not answer: {error}") from error
            wait_s = RETRY_EVERY_S
        time.sleep(wait_s)


def readable(answer: Any) -> str:
    """An answer for people to read: indented, its long strings and long lists of numbers cut."""
    return pprint.pformat(shortened(answer), width=80, compact=True, sort_dicts=False)


def shortened(answer: Any) -> Any:
    match answer:
        case dict():
            return {name: shortened(value) for name, value in answer.items()}
        case list() if len(answer) > SHOWN_ITEMS and isinstance(answer[0], float):
            return [*map(shortened, answer[:SHOWN_ITEMS]), f"... {len(answer)} numbers"]
        case list():
            return [shortened(value) for value in answer]
        case str() if len(answer) > SHOWN_CHARS:
            return f"{answer[:20]}... {len(answer):,} characters"
        case float():
            return round(answer, 4)
    return answer
