"""Downloads from a server that misbehaves: each ends in its reason, in time, within bounds."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from sightline.fetch.result import Failed, Fetched
from tests.fetching import IMPATIENT, QUICK, failure, fetch, served
from tests.hostile_server import PNG, Exchange, Handler, HostileServer, hostile_server, ok


@pytest.fixture(scope="module", name="server")
def shared_server() -> Iterator[HostileServer]:
    """Shared by the tests that do not count requests."""
    with hostile_server() as running:
        yield running


# --- what a server can do


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("silent", "timeout"),
        ("slow_headers", "timeout"),
        ("drip", "timeout"),
        ("endless", "too_many_bytes"),
        ("endless_headers", "protocol"),
        ("huge", "too_many_bytes"),
        ("loop", "too_many_redirects"),
        ("gzip_bomb", "content_encoding"),
        ("reset", "incomplete"),
        ("too_short", "incomplete"),
        ("too_long", "protocol"),
        ("no_http", "protocol"),
        ("empty", "empty"),
        ("tiny", "not_an_image"),
        ("html", "not_an_image"),
    ],
)
def test_each_misbehaviour_has_its_reason(server: HostileServer, path: str, code: str) -> None:
    begun = time.monotonic()
    result = failure(server.url(path), IMPATIENT if code == "timeout" else QUICK)
    assert result.code == code, result
    assert time.monotonic() - begun < 3
    assert (result.nbytes or 0) < QUICK.max_bytes + 512 * 1024


@pytest.mark.parametrize(("path", "status"), [("missing", 404), ("no_location", 302), ("no_content", 204)])
def test_a_status_but_200_is_recorded(server: HostileServer, path: str, status: int) -> None:
    result = failure(server.url(path))
    assert (result.code, result.status) == ("http_status", status)


def test_an_image_is_kept_whatever_its_content_type_says_with_the_headers_for_the_record(server: HostileServer) -> None:
    (result,) = fetch(server.url("ok"))
    assert isinstance(result, Fetched)
    assert (result.data, result.status, result.final_url) == (PNG, 200, server.url("ok"))
    assert (result.etag, result.last_modified) == ('"x"', "Mon, 01 Jan 2024 00:00:00 GMT")
    assert result.content_type == "text/html"
    assert server.user_agents == {"Sightline (image-text datasets)"}


def test_headers_that_are_no_text_still_fit_into_a_table() -> None:
    async def odd(exchange: Exchange) -> None:
        await exchange.send(b'HTTP/1.1 200 OK\r\nETag: "\xff"\r\nContent-Length: %d\r\n\r\n' % len(PNG) + PNG)

    async def away(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 302 \xff\r\nLocation: gopher://\xff\r\nContent-Length: 0\r\n\r\n")

    result, _ = served(odd)
    assert isinstance(result, Fetched)
    assert result.etag == '"\\xff"'
    result, _ = served(away)
    assert isinstance(result, Failed)
    assert result.code in ("bad_scheme", "bad_url")
    result.message.encode()


def test_a_compressed_page_that_says_not_found_is_a_status() -> None:
    result, _ = served(lambda exchange: exchange.answer(b"x", "Content-Encoding: br", status="404 Not Found"))
    assert isinstance(result, Failed)
    assert (result.code, result.status) == ("http_status", 404)


def test_a_url_reaches_the_server_byte_for_byte() -> None:
    with hostile_server({"x": ok}) as server:
        fetch(server.url("x/%7Ea%2Fb?c=%2B+d&e=f%20g#fragment"))
    assert "x/%7Ea%2Fb?c=%2B+d&e=f%20g" in server.requests


def test_nobody_listens(server: HostileServer) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert failure(f"http://127.0.0.1:{free.getsockname()[1]}/x.jpg").code == "connect"


def test_a_server_without_tls_and_one_with_an_unknown_certificate(server: HostileServer, tmp_path: Path) -> None:
    assert failure(server.url("ok").replace("http:", "https:")).code == "tls"
    with hostile_server(tls=self_signed(tmp_path)) as secure:
        result = failure(secure.url("ok").replace("http:", "https:"))
        assert (result.code, "CERTIFICATE_VERIFY_FAILED" in result.message) == ("tls", True)
        assert not secure.requests


def self_signed(folder: Path) -> ssl.SSLContext:
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begins = datetime.now(UTC) - timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begins, begins + timedelta(days=9))
    pem = serialization.Encoding.PEM
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(pem)
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(private + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


# --- trying again


def first_fails(times: int, status: str, *headers: str) -> Handler:
    async def handler(exchange: Exchange) -> None:
        await (exchange.answer(b"", *headers, status=status) if exchange.number <= times else exchange.answer(PNG))

    return handler


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_failure_that_may_pass_is_tried_again(status: int) -> None:
    result, server = served(first_fails(3, f"{status} Later"), retries=3)
    assert isinstance(result, Fetched)
    assert server.requests["x"] == 4


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 501])
def test_a_failure_that_stays_is_not(status: int) -> None:
    result, server = served(first_fails(1, f"{status} Never"), retries=3)
    assert isinstance(result, Failed)
    assert (result.code, result.status, server.requests["x"]) == ("http_status", status, 1)


def test_retries_end() -> None:
    result, server = served(first_fails(9, "503 Busy"), retries=2)
    assert isinstance(result, Failed)
    assert (result.code, result.status, server.requests["x"]) == ("http_status", 503, 3)


def test_a_broken_connection_is_tried_again() -> None:
    async def breaks(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.writer.transport.abort()
            raise ConnectionError
        await exchange.answer(PNG)

    result, _ = served(breaks)
    assert isinstance(result, Fetched)


def test_retry_after_is_waited_for() -> None:
    begun = time.monotonic()
    result, _ = served(first_fails(1, "429 Slow down", "Retry-After: 1"))
    assert isinstance(result, Fetched)
    assert time.monotonic() - begun >= 1


def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for value in ("3600", in_an_hour):
        begun = time.monotonic()
        result, server = served(first_fails(9, "429 Slow down", f"Retry-After: {value}"))
        assert isinstance(result, Failed)
        assert (result.code, result.status, server.requests["x"]) == ("http_status", 429, 1)
        assert time.monotonic() - begun < 2
