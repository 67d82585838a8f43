"""One URL becomes bytes or a reason, whatever the server does.

The gate is in the socket factory: it sees the very address that is about to be connected to, for names, literals and
redirects alike, so there is no moment between the check and the connection in which a name could change its address.
The resolver asks the same gate, so that a name with any private address fails as a whole. Redirects are followed by
hand, since each hop has to pass the same checks. Proxies, cookies and compression are off.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, Self
from urllib.parse import urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from sightline.fetch.addresses import BlockedError, check
from sightline.fetch.headers import MAGIC_BYTES, begins_like_an_image, opted_out, retry_after
from sightline.fetch.result import Failed, Fetched, FetchOptions, RefusedError
from sightline.fetch.robots import MAX_BYTES as ROBOTS_BYTES
from sightline.fetch.robots import Robots
from sightline.fetch.urls import parse, shown

MAX_HOPS = 5
REDIRECTS = frozenset({301, 302, 303, 307, 308})
TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
CACHED_ROBOTS = 4096  # hosts
Gate = Callable[[str, int], None]  # address and port; raises BlockedError


class GuardedResolver(AbstractResolver):
    """A resolver whose every answer must pass the gate."""

    def __init__(self, inner: AbstractResolver, gate: Gate) -> None:
        self._inner, self._gate = inner, gate

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for answer in found:
            self._gate(answer["host"], port)
        return found

    async def close(self) -> None:
        await self._inner.close()


class Client:
    """Downloads within one event loop: `async with Client(options) as client: await client.fetch(url)`.

    `resolver` and `gate` are for tests; a gate replaces the check of addresses.
    """

    def __init__(self, options: FetchOptions, resolver: AbstractResolver | None = None, gate: Gate | None = None) -> None:
        self._options = options
        self._resolver = resolver
        self._gate = gate or partial(check, allow_loopback=options.allow_loopback)
        self._robots: OrderedDict[URL, asyncio.Task[Robots | RefusedError]] = OrderedDict()

    async def __aenter__(self) -> Self:
        options = self._options
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # whoever calls counts; robots.txt must not wait for those who wait for it
                limit_per_host=options.per_host,
                resolver=GuardedResolver(self._resolver or aiohttp.ThreadedResolver(), self._gate),
                use_dns_cache=False,
                socket_factory=self._open_socket,
            ),
            # Every hop and retry shares one deadline, which `fetch` keeps; here are the waits within.
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=options.idle_timeout_s, sock_read=options.idle_timeout_s, ceil_threshold=3600
            ),
            headers={"User-Agent": options.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._robots.values():
            task.cancel()
        await self._session.close()

    async def fetch(self, url: str) -> Fetched | Failed:
        """Never raises for anything that a URL or a server can do."""
        try:
            async with asyncio.timeout(self._options.total_timeout_s) as deadline:
                return await self._persist(url, deadline)
        except TimeoutError:
            return Failed(url, "timeout", f"not done within {self._options.total_timeout_s:g} s")
        except RefusedError as refused:
            return refused.of(url)

    async def _persist(self, url: str, deadline: asyncio.Timeout) -> Fetched:
        """Try again what may pass, as long as there is time for it: a wait that would last too long is not begun."""
        for attempt in count():
            try:
                return await self._image(url)
            except RefusedError as refused:
                backoff_s = self._options.backoff_s * 2**attempt * random.uniform(0.5, 1.5)
                wait_s = max(backoff_s, refused.wait_s)
                ends = deadline.when()
                assert ends is not None
                late = asyncio.get_running_loop().time() + wait_s >= ends
                if not refused.transient or attempt == self._options.retries or late:
                    raise
            await asyncio.sleep(wait_s)
        raise AssertionError

    async def _image(self, url: str) -> Fetched:
        async with self._follow(url, polite=True) as (final, response):
            if response.status != 200:
                raise http_status(response)
            refuse_compressed(response)
            return Fetched(
                url=url,
                final_url=str(final),
                status=response.status,
                data=await self._body(response),
                etag=header(response, "ETag"),
                last_modified=header(response, "Last-Modified"),
                date=header(response, "Date"),
                content_type=header(response, "Content-Type"),
            )

    @asynccontextmanager
    async def _follow(self, text: str, *, polite: bool) -> AsyncIterator[tuple[URL, aiohttp.ClientResponse]]:
        """The first answer that is no redirect; `polite`: where robots.txt and the headers allow every hop."""
        url = parse(text)
        for _ in range(MAX_HOPS + 1):
            if polite and self._options.respect_robots_txt:
                await self._ask_robots(url)
            async with self._get(url) as response:
                if polite and self._options.respect_opt_out:
                    lines = response.headers.getall("X-Robots-Tag", [])
                    if directive := opted_out(lines, self._options.product):
                        raise RefusedError("opted_out", f"the answer has `X-Robots-Tag: {directive}`", status=response.status)
                target = response.headers.get("Location") if response.status in REDIRECTS else None
                if target is None:
                    yield url, response
                    return
            try:
                url = parse(urljoin(str(url), target))
            except ValueError:
                raise RefusedError("bad_url", f"redirected to {shown(target)}, which is no URL") from None
        raise RefusedError("too_many_redirects", f"more than {MAX_HOPS} redirects")

    @asynccontextmanager
    async def _get(self, url: URL) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request; what goes wrong in it, or while its body is read, is raised as `RefusedError`."""
        try:
            async with self._session.get(url, allow_redirects=False) as response:
                try:
                    yield response
                finally:
                    if not response.content.at_eof():
                        response.close()  # instead of reading on to keep the connection
        except (aiohttp.ClientError, OSError, UnicodeError) as error:  # UnicodeError: a name that no DNS can have
            raise refusal(error) from error

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """The whole body, if it is not too long and begins like an image."""
        most = self._options.max_bytes
        announced = response.content_length
        if announced is not None and announced > most:
            raise RefusedError("too_many_bytes", f"{announced:,} bytes are announced, {most:,} allowed", status=response.status)
        data = bytearray()
        sniffed = False
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > most:
                raise RefusedError("too_many_bytes", f"more than {most:,} bytes", status=response.status, nbytes=len(data))
            if not sniffed and len(data) >= MAGIC_BYTES:
                sniff(data, response)
                sniffed = True
        if not sniffed:
            sniff(data, response)
        return bytes(data)

    async def _ask_robots(self, url: URL) -> None:
        """Every host is asked once, and again only after its file could not be had."""
        origin = url.origin()
        task = self._robots.get(origin)
        if task is None:
            task = self._robots[origin] = asyncio.create_task(self._read_robots(origin))
            if len(self._robots) > CACHED_ROBOTS:
                self._robots.popitem(last=False)
        robots = await asyncio.shield(task)  # others wait for it too
        if isinstance(robots, RefusedError):
            if self._robots.get(origin) is task:
                del self._robots[origin]
            raise robots
        if not robots.allow(url):
            raise RefusedError("robots_txt", f"{origin}/robots.txt disallows it")

    async def _read_robots(self, origin: URL) -> Robots | RefusedError:
        """The rules of a host. A missing file allows everything, a failing server nothing (RFC 9309, 2.3.1)."""
        try:
            async with asyncio.timeout(self._options.total_timeout_s):
                async with self._follow(f"{origin}/robots.txt", polite=False) as (_, response):
                    if response.status == 429 or response.status >= 500:
                        failed = http_status(response)
                        return RefusedError(
                            "robots_txt",
                            f"{origin}/robots.txt answered {response.status}, so nothing may be fetched",
                            status=response.status,
                            transient=failed.transient,
                            wait_s=failed.wait_s,
                        )
                    if response.status != 200:
                        return Robots()
                    refuse_compressed(response)
                    text = bytearray()
                    async for chunk in response.content.iter_any():
                        text += chunk
                        if len(text) >= ROBOTS_BYTES:
                            break
                    return Robots.of(bytes(text[:ROBOTS_BYTES]), self._options.product)
        except TimeoutError:
            return RefusedError("timeout", f"{origin}/robots.txt did not come")
        except RefusedError as refused:
            message = f"{origin}/robots.txt: {refused}"
            return RefusedError(refused.code, message, transient=refused.transient, wait_s=refused.wait_s)

    def _open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = info
        self._gate(address[0], address[1])
        opened = socket.socket(family, kind, protocol)
        opened.setblocking(False)
        return opened


def header(response: aiohttp.ClientResponse, name: str) -> str | None:
    """A header line as text that any table can hold: bytes that are no UTF-8 are spelled out."""
    value = response.headers.get(name)
    return None if value is None else value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def refuse_compressed(response: aiohttp.ClientResponse) -> None:
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise RefusedError("content_encoding", f"the body is compressed ({shown(encoding)})", status=response.status)


def sniff(data: bytearray, response: aiohttp.ClientResponse) -> None:
    if not data:
        raise RefusedError("empty", "the body has no bytes", status=response.status, nbytes=0)
    if not begins_like_an_image(bytes(data[:MAGIC_BYTES])):
        message = f"the body begins with {bytes(data[:MAGIC_BYTES])!r}, like no image"
        raise RefusedError("not_an_image", message, status=response.status, nbytes=len(data))


def http_status(response: aiohttp.ClientResponse) -> RefusedError:
    return RefusedError(
        "http_status",
        f"the server answered {response.status}",
        status=response.status,
        transient=response.status in TRANSIENT,
        wait_s=retry_after(response.headers.get("Retry-After")),
    )


def refusal(error: Exception) -> RefusedError:
    """The reason behind an exception of the client's library."""
    if blocked := next((cause for cause in causes(error) if isinstance(cause, BlockedError)), None):
        return RefusedError(blocked.code, str(blocked))
    message = " ".join(f"{type(error).__name__}: {error}".split())[:300]  # some of it may be the server's own words
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        again = any(isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_AGAIN for cause in causes(error))
        return RefusedError("dns", message, transient=again)
    if isinstance(error, (aiohttp.ClientConnectorSSLError, aiohttp.ClientConnectorCertificateError)):
        return RefusedError("tls", message)
    if isinstance(error, TimeoutError):
        return RefusedError("timeout", message, transient=True)
    if isinstance(error, (OSError, aiohttp.ClientConnectionError)):
        return RefusedError("connect", message, transient=True)
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):
        return RefusedError("bad_url", message)
    if isinstance(error, aiohttp.ClientPayloadError):
        return RefusedError("incomplete", message, transient=True)
    return RefusedError("protocol", message)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
