"""Where a download may go, and what the owners of images ask for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
from aiohttp.abc import ResolveResult

from sightline.fetch.addresses import BlockedError, check
from sightline.fetch.result import Failed, Fetched
from tests.fetching import QUICK, Names, failure, fetch, only, served
from tests.hostile_server import PNG, Exchange, Handler, HostileServer, hostile_server, until_left


@pytest.fixture(scope="module", name="server")
def shared_server() -> Iterator[HostileServer]:
    """Shared by the tests that do not count requests."""
    with hostile_server() as running:
        yield running


# --- where a request may go


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("file:///etc/passwd", "bad_scheme"),
        ("ftp://127.0.0.1/x", "bad_scheme"),
        ("data:image/png;base64,AAAA", "bad_scheme"),
        ("http://10.0.0.1/x", "blocked_address"),
        ("http://169.254.169.254/latest/meta-data/", "blocked_address"),
        ("http://127.0.0.2:{port}/ok", "blocked_address"),
        ("http://[::1]:{port}/ok", "blocked_address"),
        ("http://[::ffff:127.0.0.1]:{port}/ok", "blocked_address"),
        ("http://[64:ff9b::7f00:1]:{port}/ok", "blocked_address"),
        ("//10.0.0.1/x", "blocked_address"),
        ("http://user@127.0.0.1:{port}/ok", "bad_url"),
        ("http://2130706433:{port}/ok", "bad_url"),
        ("http://[bad", "bad_url"),
        ("https://", "bad_url"),
    ],
)
@pytest.mark.parametrize("respect_robots_txt", [True, False])
def test_a_redirect_has_to_pass_the_same_checks(target: str, code: str, respect_robots_txt: bool) -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.redirect(target.format(port=server.port))

    with hostile_server({"x": redirect}) as server:
        options = replace(QUICK, respect_robots_txt=respect_robots_txt)
        assert failure(server.url("x"), options, gate=only(server)).code == code
    assert server.requests["x"] == 1
    assert "ok" not in server.requests


@pytest.mark.parametrize(
    ("host", "codes"),
    [
        ("127.0.0.1", {"blocked_address"}),
        ("localhost", {"blocked_address"}),
        ("0.0.0.0", {"blocked_address"}),
        ("[::1]", {"blocked_address"}),
        ("[::ffff:7f00:1]", {"blocked_address"}),
        ("2130706433", {"bad_url"}),
        ("017700000001", {"bad_url"}),
        ("0177.0.0.1", {"bad_url"}),
        ("127.1", {"bad_url"}),
        ("0x7f000001", {"blocked_address", "dns"}),  # the system's resolver decides whether that is a name
        ("0x7f.0.0.1", {"blocked_address", "dns"}),
        ("127.0.0.1.", {"bad_url"}),
    ],
)
def test_loopback_is_refused_in_every_spelling_unless_allowed(server: HostileServer, host: str, codes: set[str]) -> None:
    assert failure(server.url("ok", host), replace(QUICK, allow_loopback=False)).code in codes


def test_loopback_alone_is_allowed_by_the_option() -> None:
    assert failure("http://10.0.0.1:8080/x").code == "blocked_address"
    assert failure("http://[::ffff:127.0.0.1]/x").code == "blocked_address"


def test_a_public_address_at_another_port_is_refused() -> None:
    assert failure("http://198.41.0.4:22/x", replace(QUICK, allow_loopback=False)).code == "bad_port"
    assert failure("http://198.41.0.4:8080/x", QUICK).code == "bad_port"


def test_a_name_that_leads_to_loopback_is_refused(server: HostileServer) -> None:
    gate = partial(check, allow_loopback=False)
    assert failure(server.url("ok", "evil.test"), resolver=Names(), gate=gate).code == "blocked_address"


def test_a_name_with_one_private_address_among_others_is_refused_as_a_whole() -> None:
    with hostile_server() as server:
        names = Names({"both.test": [["127.0.0.1", "10.0.0.1"]]})
        assert failure(server.url("ok", "both.test"), resolver=names, gate=only(server)).code == "blocked_address"
    assert not server.requests


def test_a_name_that_changes_its_address_after_the_first_lookup_is_refused() -> None:
    async def again(exchange: Exchange) -> None:
        await exchange.answer(b"", f"Location: {server.url('ok', 'rebind.test')}", "Connection: close", status="302 Found")
        raise ConnectionError

    with hostile_server({"x": again}) as server:
        names, seen = Names({"rebind.test": [["127.0.0.1"], ["127.0.0.2"]]}), list[str]()
        options = replace(QUICK, respect_robots_txt=False)
        result = failure(server.url("x", "rebind.test"), options, resolver=names, gate=only(server, seen))
    assert result.code == "blocked_address"
    assert server.requests == {"x": 1}
    assert seen == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]  # asked at the lookup, at the socket, and at the next lookup


def test_the_socket_itself_is_guarded_when_the_lookup_lied() -> None:
    """A gate that lets an address pass once is asked again with what is connected to."""
    asked: list[str] = []

    def gate(address: str, port: int) -> None:
        asked.append(address)
        if len(asked) > 1:
            raise BlockedError("blocked_address", address)

    with hostile_server() as server:
        options = replace(QUICK, respect_robots_txt=False)
        assert failure(server.url("ok", "a.test"), options, resolver=Names(), gate=gate).code == "blocked_address"
    assert (asked, dict(server.requests)) == (["127.0.0.1", "127.0.0.1"], {})


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("ftp://example.com/x", "bad_scheme"),
        ("/images/x.jpg", "bad_url"),
        ("", "bad_url"),
        ("http:///x", "bad_url"),
        ("http://a:b@example.com/", "bad_url"),
        ("http://a b/", "bad_url"),
        ("http://exa\nmple.com/", "bad_url"),
        ("http://a..b/", "bad_url"),
        (f"http://{'a' * 64}.com/", "bad_url"),
        ("http://evil\\@127.0.0.1/", "bad_url"),
        ("http://example.com:99999/", "bad_url"),
        ("http://x\ud800.com/", "bad_url"),
        ("http://[::1", "bad_url"),
    ],
)
def test_what_is_no_url_is_said_without_a_request(url: str, code: str) -> None:
    assert failure(url).code == code


def test_a_name_without_an_address() -> None:
    class Nothing(Names):
        async def resolve(self, *_: object, **__: object) -> list[ResolveResult]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert failure("http://nowhere.test/x", resolver=Nothing()).code == "dns"


def test_cookies_and_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def cookie(exchange: Exchange) -> None:
        await exchange.answer(PNG, "Set-Cookie: a=b")

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with hostile_server({"x": cookie}) as server:
        results = fetch(server.url("x/1"), server.url("x/2"), options=replace(QUICK, per_host=1))
    assert all(isinstance(result, Fetched) for result in results)
    assert not any("cookie:" in head.lower() for head in server.heads)
    assert all("accept-encoding: identity" in head.lower() for head in server.heads)


# --- what an owner asks for


OPTED_OUT = [
    ["noai"],
    ["noimageai"],
    ["NoIndex"],
    ["noimageindex"],
    ["noml"],
    ["none"],
    ["nofollow, noai"],
    ["nofollow", "noarchive, noindex"],
    ["sightline: noai"],
    ["*: noml"],
    ["otherbot: nofollow", "Sightline: noindex, nofollow"],
    ["otherbot: nofollow, sightline: noai"],
    ["max-snippet: 5, noindex"],
    ["unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT, noindex"],
]


@pytest.mark.parametrize("lines", OPTED_OUT)
def test_an_opt_out_is_honoured_before_the_body_is_read(lines: list[str]) -> None:
    async def body_never_comes(exchange: Exchange) -> None:
        headers = "".join(f"X-Robots-Tag: {line}\r\n" for line in lines)
        await exchange.send(f"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n{headers}\r\n".encode())
        await until_left(exchange)

    result, _ = served(body_never_comes)
    assert isinstance(result, Failed)
    assert (result.code, result.status) == ("opted_out", 200)


@pytest.mark.parametrize("line", ["otherbot: noai, noindex", "all", "nofollow, noarchive", "max-image-preview: none", ""])
def test_what_is_no_opt_out_for_us_is_none(line: str) -> None:
    result, _ = served(lambda exchange: exchange.answer(PNG, f"X-Robots-Tag: {line}"))
    assert isinstance(result, Fetched)


def test_an_opt_out_counts_on_a_redirect_too_and_may_be_overruled() -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.answer(b"", "Location: /ok", "X-Robots-Tag: noai", status="302 Found")

    result, _ = served(redirect)
    assert isinstance(result, Failed)
    assert result.code == "opted_out"
    result, _ = served(redirect, respect_opt_out=False)
    assert isinstance(result, Fetched)


def robots(text: str, status: str = "200 OK") -> dict[str, Handler]:
    return {"robots.txt": lambda exchange: exchange.answer(text.encode(), status=status)}


def test_robots_txt_is_asked_once_a_host_and_obeyed() -> None:
    text = "User-agent: *\nDisallow: /ok/private\n\nUser-agent: other\nDisallow: /\n"
    with hostile_server(robots(text)) as server:
        results = fetch(*(server.url(f"ok/{name}") for name in ("public", "private/1", "public2")))
    assert [getattr(result, "code", "fetched") for result in results] == ["fetched", "robots_txt", "fetched"]
    assert server.requests == {"robots.txt": 1, "ok/public": 1, "ok/public2": 1}


def test_robots_txt_of_a_redirects_host_is_asked_too() -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.redirect(server.url("ok", "second.test"))

    async def by_host(exchange: Exchange) -> None:
        disallow = exchange.host.startswith("second")
        await exchange.answer(b"User-agent: sightline\nDisallow: /" if disallow else b"")

    with hostile_server({"x": redirect, "robots.txt": by_host}) as server:
        assert failure(server.url("x", "first.test"), resolver=Names()).code == "robots_txt"
    assert "ok" not in server.requests


def test_robots_txt_may_be_ignored() -> None:
    with hostile_server(robots("User-agent: *\nDisallow: /")) as server:
        assert failure(server.url("ok")).code == "robots_txt"
        (result,) = fetch(server.url("ok"), options=replace(QUICK, respect_robots_txt=False))
    assert isinstance(result, Fetched)


@pytest.mark.parametrize(("status", "allowed"), [("403 Forbidden", True), ("410 Gone", True), ("503 Busy", False)])
def test_a_missing_robots_txt_allows_and_a_failing_server_does_not(status: str, allowed: bool) -> None:
    with hostile_server(robots("", status)) as server:
        (result,) = fetch(server.url("ok"))
    assert getattr(result, "code", "fetched") == ("fetched" if allowed else "robots_txt")


def test_an_endless_robots_txt_is_read_in_part() -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\n\r\nUser-agent: *\nDisallow: /no\n")
        while True:
            await exchange.send(b"# x\n" * 10_000)

    with hostile_server({"robots.txt": endless}) as server:
        results = fetch(server.url("ok"), server.url("no"))
    assert [getattr(result, "code", "fetched") for result in results] == ["fetched", "robots_txt"]
