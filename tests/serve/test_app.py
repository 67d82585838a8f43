"""The service on a real Ray: what it answers, what meets in a batch, what it refuses, and what it leaves behind."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from ray import serve

from sightline.models.clip import Clip
from sightline.serve import app, client, example, front_door
from sightline.serve.client import readable, smoke
from tests.serve.conftest import encoded, free_port, picture

LABELS = ["a cat", "a dog", "snow"]


@pytest.fixture(scope="module")
def url(ray_local: None, model_folder: Path) -> Iterator[str]:
    options = app.Options(model=str(model_folder), batch_wait_s=0.05, precision="float32", min_replicas=2, max_replicas=2, cpus=0.5)
    with app.serving(options, port=free_port()) as url:
        yield url
    assert ray.is_initialized()
    assert not serve.status().applications
    assert app.GcsBoard().names("") == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def classify(url: str, data: bytes) -> Any:
    response = httpx.post(f"{url}/v1/classify", files={"image": data}, data={"labels": LABELS}, timeout=60)
    assert response.status_code == 200, response.text
    return {prediction["label"]: prediction["score"] for prediction in response.json()["results"][0]["predictions"]}


def batches(url: str) -> tuple[float, float]:
    """Images that passed the tower, and in how many batches, over all replicas, once these have published it."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            found[sample.name] += sample.value
    return found["sightline_batch_size_sum"], found["sightline_batch_size_count"]


def test_concurrent_answers_equal_single_ones_and_share_batches(url: str) -> None:
    images = [encoded(picture(seed=seed)) for seed in range(24)]
    single = [classify(url, image) for image in images]
    with ThreadPoolExecutor(12) as clients:
        concurrent = list(clients.map(lambda image: classify(url, image), images))
    for one, other in zip(single, concurrent, strict=True):
        assert other == pytest.approx(one, abs=1e-5)
    deadline = time.monotonic() + 10  # each replica publishes every two seconds
    while batches(url)[0] != 2 * len(images):
        assert time.monotonic() < deadline, batches(url)
        time.sleep(0.1)
    assert batches(url)[1] < 2 * len(images)


def test_what_one_replica_is_told_all_know(url: str) -> None:
    assert httpx.put(f"{url}/v1/labels/pets", json={"labels": LABELS}).status_code == 201
    image = {"image": example.data_url(), "label_set": "pets"}
    replicas = set()
    for _ in range(20):
        assert httpx.post(f"{url}/v1/classify", json=image, timeout=60).status_code == 200
        replicas.add(httpx.get(f"{url}/readyz").json()["replica"])
    assert len(replicas) == 2
    assert httpx.delete(f"{url}/v1/labels/pets").status_code == 204


def test_a_broken_image_fails_alone(url: str) -> None:
    good, bad = encoded(picture()), encoded(picture())[:200]
    with ThreadPoolExecutor(8) as clients:
        answers = list(
            clients.map(
                lambda data: httpx.post(f"{url}/v1/classify", files={"image": data}, data={"labels": LABELS}, timeout=60),
                [good, bad] * 8,
            )
        )
    assert [answer.status_code for answer in answers] == [200, 400] * 8


def test_every_endpoint_answers_with_the_model_that_was_asked_for(url: str, model: Clip) -> None:
    answers = smoke(url, example.jpeg(), example.LABELS)
    assert answers.keys() == {"classify", "segment", "embeddings"}
    assert {answer["revision"] for answer in answers.values()} == {model.revision}
    assert "characters" in readable(answers) and len(readable(answers)) < 4_000


def test_a_refusal_reaches_the_client_as_a_sentence(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"400 image: .*send a whole JPEG"):
        smoke(url, b"no image", LABELS)
    monkeypatch.setattr(client, "RETRY_S", 0.0)
    with pytest.raises(ConnectionError, match="does not answer"):
        smoke(f"http://127.0.0.1:{free_port()}", b"", LABELS)


def test_a_chunked_body_is_cut_through_the_proxy_too(url: str) -> None:
    endless = (bytes(100_000) for _ in range(1_000))
    response = httpx.post(f"{url}/v1/classify", content=endless, headers={"Content-Type": "application/json"}, timeout=60)
    assert response.status_code == 413
    assert response.json()["type"].endswith("body-too-large")


def test_a_second_service_on_the_same_ray_is_refused_and_the_first_goes_on(url: str, model_folder: Path) -> None:
    options = app.Options(model=str(model_folder))
    with pytest.raises(ValueError, match="serves a model of Sightline's already"), app.serving(options, port=free_port()):
        pass
    assert httpx.get(f"{url}/readyz").is_success


def test_a_port_in_use_is_named_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another"):
            front_door.check_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("box", "http://box:80")],
)
def test_the_url_is_one_that_this_machine_can_open(host: str, url: str) -> None:
    assert app.url_of(host, 80) == url


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "model"),
        ({"model": "x", "gpu": 1}, "gpu"),
        ({"model": "x", "min_replicas": 3, "max_replicas": 2}, "swap them"),
        ({"model": "x", "cpus": 0}, "cpus"),
    ],
)
def test_a_deployment_with_wrong_arguments_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        app.build(arguments)
