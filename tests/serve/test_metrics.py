"""What /metrics says: read as Prometheus reads it."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from sightline.serve import metrics as metrics_module
from sightline.serve.board import MemoryBoard
from sightline.serve.metrics import Metrics, everybodys, publish
from sightline.serve.service import Service

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """The one sample of that name that has these labels among its own."""
    [one] = [number for (known, has), number in found.items() if known == name and set(labels.items()) <= has]
    return one


def test_a_scrape_shows_requests_batches_stages_and_the_cache(client: TestClient, service: Service, png: bytes) -> None:
    asked: dict[str, Any] = {"files": {"image": png}, "data": {"labels": "a cat, a dog"}}
    for _ in range(2):
        assert client.post("/v1/classify", **asked).status_code == 200
    client.post("/v1/classify", files={"image": b""}, data={"labels": "a cat"})
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(answer.text)
    assert value(found, "sightline_requests_total", path="/v1/classify", status="200") == 2
    assert value(found, "sightline_requests_total", path="/v1/classify", status="400") == 1
    assert value(found, "sightline_batch_size_count") == value(found, "sightline_batch_size_sum") == 2
    assert value(found, "sightline_label_cache_total", result="miss") == 2
    assert value(found, "sightline_label_cache_total", result="hit") == 3
    for stage in ("decode", "queue", "image_tower"):
        assert value(found, "sightline_stage_seconds_count", stage=stage) >= 2
    assert value(found, "sightline_queue") == 0
    assert value(found, "sightline_model_share", model="tiny-clip") == 1


def test_whoever_is_asked_shows_every_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    board = MemoryBoard()
    first, second = Metrics("first"), Metrics("second")
    first.requests.labels("/v1/classify", 200).inc(3)
    second.requests.labels("/v1/classify", 200).inc(4)
    publish(second, board)
    found = samples(everybodys(first, board))
    assert value(found, "sightline_requests_total", replica="first") == 3
    assert value(found, "sightline_requests_total", replica="second") == 4
    monkeypatch.setattr(metrics_module, "GONE_AFTER_S", -1.0)
    assert not [name for name, labels in samples(everybodys(first, board)) if ("replica", "second") in labels]
    assert board.names("metrics/") == []


def test_paths_that_people_make_up_do_not_fill_the_metrics(client: TestClient) -> None:
    for i in range(5):
        client.get(f"/v1/made-up-{i}")
        client.put(f"/v1/labels/set-{i}", json={"labels": "a"})
    paths = {
        dict(labels).get("path") for name, labels in samples(client.get("/metrics").text) if name == "sightline_requests_total"
    }
    assert paths == {"refused", "/v1/labels/{name}"}
