"""Images by URL: what is public is fetched, what is ours is refused, and an error says nothing of what this machine can reach."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from starlette.testclient import TestClient

from sightline.fetch.addresses import BlockedError
from sightline.serve import remote
from sightline.serve.http import build
from sightline.serve.limits import Limits
from sightline.serve.problems import ProblemError
from sightline.serve.served import Served
from sightline.serve.service import Service
from tests.serve.conftest import encoded, picture
from tests.serve.test_http import detail


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://10.1.2.3/secret.png")
            self.end_headers()
            return
        body = encoded(picture()) if self.path == "/photo.png" else b"<html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def gate(address: str, port: int) -> None:
    """Lets this machine pass, and nothing else."""
    if address != "127.0.0.1":
        raise BlockedError("blocked_address", f"{address} is no public address")


def test_a_public_image_is_fetched(site: str) -> None:
    assert asyncio.run(remote.fetch(f"{site}/photo.png", "image", 100_000, gate)) == encoded(picture())


@pytest.mark.parametrize(
    ("path", "most", "status", "says"),
    [
        ("/photo.png", 100, 413, "it may have 100 bytes"),
        ("/page", 100_000, 400, "not an image"),
        ("/away", 100_000, 400, "cannot be reached"),
    ],
)
def test_what_is_no_public_image_is_refused(site: str, path: str, most: int, status: int, says: str) -> None:
    with pytest.raises(ProblemError, match=says) as raised:
        asyncio.run(remote.fetch(site + path, "image", most, gate))
    assert raised.value.status == status
    assert "10.1.2.3" not in raised.value.detail and "127.0.0.1" not in raised.value.detail


def test_a_service_that_fetches_reaches_nothing_of_its_own_network(site: str, served: Served) -> None:
    with TestClient(build(Service(served, Limits(image_urls=True)))) as client:
        for url in (f"{site}/photo.png", "http://[::1]/x", "http://169.254.169.254/latest", "https://user:secret@example.com/"):
            said = detail(client.post("/v1/classify", json={"image": url, "labels": "a"}), 400)
            assert "send the bytes" in said and url not in said
        urls = {"images": [f"{site}/photo.png"] * 9, "labels": "a"}
        assert "9 images by URL are too many; one request takes 8" in detail(client.post("/v1/classify", json=urls), 422)
