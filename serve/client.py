"""A client that asks a running service one question of each kind: what the demo and `sightline serve --check` show."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from typing import Any

import httpx

# Generous: a first request may embed many labels on a slow machine.
TIMEOUT_S = 120.0
SHOWN_CHARS, SHOWN_ITEMS = 64, 4


def smoke(url: str, image: bytes, labels: Sequence[str]) -> dict[str, Any]:
    """One real request to each endpoint: {"classify": ..., "segment": ..., "embed": ...} with the answers as they came.

    Raises:
        ValueError: the service refused; the message is its own.
        ConnectionError: nothing answers there.
    """
    with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
        return {
            "classify": ask(client, "/classify", files={"image": image}, data={"labels": list(labels)}),
            "segment": ask(client, "/segment", files={"image": image}, data={"labels": list(labels)}),
            "embed": ask(client, "/embed", files={"images": image}, data={"texts": "\n".join(labels)}),
        }


def ask(client: httpx.Client, path: str, **body: Any) -> Any:
    try:
        response = client.post(path, **body)
    except httpx.HTTPError as error:
        raise ConnectionError(f"{client.base_url} does not answer: {error}") from error
    if response.is_error:
        # The proxy in front of the replicas answers in plain text when it has none.
        problem = response.headers.get("content-type") == "application/problem+json"
        raise ValueError(f"{path}: {response.status_code} {response.json()['detail'] if problem else response.text}")
    return response.json()


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
