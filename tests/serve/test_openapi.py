"""Our own OpenAPI document, taken at its word: whatever schemathesis makes of it gets an answer or a 4xx, as promised."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

from sightline.serve.http import build
from sightline.serve.served import Served
from sightline.serve.service import Service
from tests.serve.conftest import LIMITS

CHECKS = [not_a_server_error, response_schema_conformance]


def cases(served: Served, mode: GenerationMode, of_each: int, **settled: Any) -> int:
    """Send that many requests to each operation, of those that it describes or of those that it forbids; how many there were."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", build(Service(served, LIMITS)))
    sent = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=of_each, deadline=None, database=None, suppress_health_check=list(HealthCheck), **settled)
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            nonlocal sent
            sent += 1
            case.call_and_validate(checks=CHECKS)

        if mode is GenerationMode.POSITIVE or len(operation.body):  # any name is a good one: only bodies can be wrong
            send()
    return sent


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_nothing_that_is_sent_breaks_the_service(served: Served, mode: GenerationMode) -> None:
    assert cases(served, mode, 12, derandomize=True) > 40  # four operations have a body that can be wrong


@pytest.mark.campaign
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_nothing_that_is_sent_breaks_the_service_at_length(served: Served, mode: GenerationMode) -> None:
    assert cases(served, mode, 300) > 1_000
