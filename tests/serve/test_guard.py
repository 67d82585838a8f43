"""Who is let in: keys, rates, room, deadlines, origins, peers; and what is written of each request."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from torch import Tensor

from sightline.serve import keys as keys_module
from sightline.serve.app import Options
from sightline.serve.guard import Front
from sightline.serve.http import build
from sightline.serve.keys import ApiKey, Bucket, Gate, make, read
from sightline.serve.problems import ProblemError
from sightline.serve.service import Service
from tests.conftest import InlineCommandLine
from tests.serve.test_http import data_url, detail

Open = Callable[..., TestClient]


@pytest.fixture
def served_by(service: Service) -> Iterator[Open]:
    """`served_by(room=1)` is a client of the service behind such a front."""
    clients: list[TestClient] = []

    def client(**front: Any) -> TestClient:
        clients.append(TestClient(build(service, Front(**front)), raise_server_exceptions=False).__enter__())
        return clients[-1]

    yield client
    for one in clients:
        one.__exit__()


def labels(client: TestClient, **headers: str) -> Any:
    return client.get("/v1/labels", headers={name.replace("_", "-"): value for name, value in headers.items()})


# ------------------------------------------------------------------------------------------------- keys


def test_who_has_a_key_may_ask(served_by: Open) -> None:
    (alice, kept_alice), (bob, kept_bob) = make("alice", None), make("bob", None)
    client = served_by(keys=(kept_alice, kept_bob))
    for secret in (alice, bob):
        assert labels(client, Authorization=f"Bearer {secret}").status_code == 200
        assert labels(client, X_API_Key=secret).status_code == 200
    answer = labels(client)
    assert "Authorization: Bearer KEY" in detail(answer, 401)
    assert client.post("/classify", json={}).status_code == 401  # the short paths are no way around
    for wrong in (alice[:-1], alice + "x", kept_alice.sha256, "clé"):
        answer = client.get("/v1/labels", headers={"X-API-Key": wrong.encode("latin-1")})  # type: ignore[dict-item]
        assert "not known here" in detail(answer, 401)
    for open_to_all in ("/healthz", "/readyz", "/", "/docs"):
        assert client.get(open_to_all).status_code == 200


def test_every_kept_hash_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def watched(given: str, kept: str) -> bool:
        compared.append(kept)
        return given == kept

    monkeypatch.setattr(keys_module.hmac, "compare_digest", watched)
    secret, first = make("first", None)
    second = ApiKey("second", "0" * 64)
    assert Gate([first, second]).admit({"x-api-key": secret}) == "first"
    assert compared == [first.sha256, second.sha256]


def test_a_key_that_comes_too_often_waits_as_long_as_it_is_told() -> None:
    now = 100.0
    secret, kept = make("fast", 2.0)
    gate = Gate([kept], clock=lambda: now)
    header = {"x-api-key": secret}
    for _ in range(4):  # two seconds' worth
        gate.admit(header)
    with pytest.raises(ProblemError, match="2 times a second") as raised:
        gate.admit(header)
    assert (raised.value.status, raised.value.retry_after_s) == (429, pytest.approx(0.5))
    now += 0.5
    assert gate.admit(header) == "fast"


def test_too_often_is_429_with_a_time_to_come_back(served_by: Open) -> None:
    secret, kept = make("slow", 0.01)
    client = served_by(keys=(kept,))
    assert labels(client, X_API_Key=secret).status_code == 200
    answer = labels(client, X_API_Key=secret)
    detail(answer, 429)
    assert 90 <= int(answer.headers["retry-after"]) <= 100


def test_a_bucket_never_holds_more_than_its_burst() -> None:
    bucket = Bucket(5.0, now=0.0)
    assert [bucket.take(1e6) for _ in range(11)].count(0.0) == 10


def test_the_command_makes_keys_and_keeps_hashes(cli_inline: InlineCommandLine, tmp_path: Path) -> None:
    secret = cli_inline("key", "alice", "--rate", "5").stdout.strip()
    cli_inline("key", "bob")
    known = read(tmp_path / "keys.txt")
    assert [(key.name, key.per_s) for key in known] == [("alice", 5.0), ("bob", None)]
    assert Gate(known).admit({"authorization": f"Bearer {secret}"}) == "alice"
    assert secret not in (tmp_path / "keys.txt").read_text()
    again = cli_inline("key", "alice")
    assert again.exit_code == 2 and "a key for alice already" in again.stderr
    for left in ("", f"bob {'0' * 64}"):  # as editors leave a file: empty, or without its last line end
        (tmp_path / "keys.txt").write_text(left)
        cli_inline("key", "alice")
        assert [key.name for key in read(tmp_path / "keys.txt")] == [*left.split()[:1], "alice"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nobody could ask"),
        ("alice", "line 1 is no key"),
        (f"a {'0' * 64}\na {'1' * 64}", "comes twice"),
        (f"a {'0' * 64} 0", "give more than 0"),
    ],
)
def test_a_file_of_keys_that_cannot_be_used(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "keys.txt").write_text(text)
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "keys.txt")
    with pytest.raises(FileNotFoundError, match="sightline key"):
        read(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "a b", "sha256": "0" * 64}, "cannot name a key"),
        ({"name": "a", "sha256": "A" * 64}, "64 small hexadecimal digits"),
        ({"name": "a", "sha256": "0" * 64, "per_s": 0}, "give more than 0"),
    ],
)
def test_keys_of_a_deployment_are_looked_at_too(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Options.model_validate({"model": "m", "keys": [fields]})


# ------------------------------------------------------------------------------------- room and deadline


@pytest.fixture
def hold(service: Service, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A request for the embedding of "hold" keeps the towers busy until this is set."""
    go, engine = threading.Event(), service.shares[0].served.engine
    original = engine.embed_texts

    def embed(texts: list[str]) -> Tensor:
        if texts == ["hold"]:
            assert go.wait(30)
        return original(texts)

    monkeypatch.setattr(engine, "embed_texts", embed)
    return go


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.001)


def under_way(service: Service) -> float | None:
    return service.metrics.registry.get_sample_value("sightline_in_flight")


def test_over_capacity_is_503_at_once_and_the_service_goes_on(service: Service, served_by: Open, hold: threading.Event) -> None:
    client = served_by(room=2)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/v1/embeddings", json={"input": "hold"}) for _ in range(2)]
        wait_until(lambda: under_way(service) == 2)
        answer = labels(client)
        assert "ask again later" in detail(answer, 503)
        assert answer.headers["retry-after"] == "1"
        hold.set()
        assert [one.result().status_code for one in waiting] == [200, 200]
    assert labels(client).status_code == 200


def test_a_request_past_its_deadline_does_not_reach_the_model(
    service: Service, served_by: Open, hold: threading.Event, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, engine = served_by(), service.shares[0].served.engine
    reached: list[str] = []
    monkeypatch.setattr(engine, "label_weights", lambda *_: reached.append("text"))
    monkeypatch.setattr(engine, "embed_images", lambda *_: reached.append("image"))
    asked = ({"input": data_url(png)}, {"image": data_url(png), "labels": "a"})
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.post, "/v1/embeddings", json={"input": "hold"})
        wait_until(lambda: under_way(service) == 1)
        late = [
            pool.submit(client.post, path, json=body, headers={"X-Deadline-Seconds": "0.05"})
            for path, body in zip(("/v1/embeddings", "/v1/classify"), asked, strict=True)
        ]
        wait_until(lambda: under_way(service) == 3)
        threading.Event().wait(0.06)  # longer than their deadline
        hold.set()
        for answer in (one.result() for one in late):
            assert "X-Deadline-Seconds" in detail(answer, 503)
            assert answer.headers["retry-after"] == "1"
        assert first.result().status_code == 200
    assert reached == []


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "1e400", ""])
def test_a_deadline_that_is_no_number(served_by: Open, given: str) -> None:
    assert "give a number of seconds" in detail(labels(served_by(), X_Deadline_Seconds=given), 422)


# --------------------------------------------------------------------------------------- peers, origins


def test_only_this_machine_may_ask_where_it_listens_for_itself(served_by: Open) -> None:
    assert "--host lets others in" in detail(served_by(peers=frozenset({"127.0.0.1"})).get("/"), 403)  # the client is "testclient"
    client = served_by(peers=frozenset({"testclient", "127.0.0.1", "::1"}))
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:8000", "[::1]:8000"):
        assert client.get("/", headers={"Host": host}).status_code == 200
    for host in (
        "page.example",
        "page.example:8000",
        "[::2]",
        "127.0.0.1.page.example",
    ):  # names that were made to mean this machine
        assert "answers its own machine only" in detail(client.get("/v1/labels", headers={"Host": host}), 403)


def test_a_prefix_among_other_applications_is_no_way_around(service: Service) -> None:
    key, kept = make("alice", None)
    app = build(service, Front(keys=(kept,)))
    with TestClient(app, root_path="/vision", raise_server_exceptions=False) as client:
        for path in ("/vision/v1/labels", "/vision/v1/models", "/v1/labels"):
            assert client.get(path).status_code == 401
            assert client.get(path, headers={"X-API-Key": key}).status_code == 200
        assert client.post("/vision/classify", json={}).status_code == 401
        assert client.post("/vision/classify", json={}, headers={"X-API-Key": key}).status_code == 422


def test_pages_from_elsewhere_may_ask_only_if_they_are_listed(served_by: Open) -> None:
    listed = {"Origin": "https://listed.example"}
    plain = served_by().get("/v1/labels", headers=listed)
    assert "access-control-allow-origin" not in plain.headers
    client = served_by(origins=("https://listed.example",), keys=(make("a", None)[1],))
    assert client.get("/v1/labels", headers=listed).headers["access-control-allow-origin"] == listed["Origin"]
    other = client.get("/v1/labels", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    asking = listed | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert client.options("/v1/classify", headers=asking).status_code == 200


# -------------------------------------------------------------------------------------------- the log


def test_each_request_is_one_line_of_json(served_by: Open, png: bytes, caplog: pytest.LogCaptureFixture) -> None:
    secret, kept = make("alice", None)
    client = served_by(keys=(kept,))
    headers = {"X-API-Key": secret, "X-Request-Id": "mine-1"}
    with caplog.at_level(logging.INFO, "sightline.serve"):
        answer = client.post("/v1/classify", files={"image": png}, data={"labels": "a"}, headers=headers)
        refused = client.get("/v1/labels", headers={"X-Request-Id": "not an id \u00e9".encode("latin-1")})  # type: ignore[dict-item]
    assert answer.headers["x-request-id"] == "mine-1"
    first, second = (json.loads(record.message) for record in caplog.records)
    assert (first["request_id"], first["path"], first["status"], first["key"]) == ("mine-1", "/v1/classify", 200, "alice")
    assert first["model"] == "tiny-clip" and first["images"] == 1 and first["ms"] > 0
    assert (second["status"], second["request_id"]) == (401, refused.headers["x-request-id"])
    assert secret not in caplog.text
