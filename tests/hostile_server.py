"""A web server on loopback that does what servers should not: slow, endless, lying, looping, greedy.

Each path is one misbehaviour, a coroutine that gets the connection after the request's headers were read. The server
counts: requests by path, answers under way by Host header, and the most of these at a time.
"""

from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO

from PIL import Image


def png(size: int = 8) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (size, size), "teal").save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


@dataclass
class Exchange:
    """One request, and the connection to answer on."""

    path: str
    host: str
    number: int  # of this path's requests, from 1
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
        await self.send("\r\n".join(lines).encode() + body)

    async def redirect(self, target: str) -> None:
        await self.answer(b"", f"Location: {target}", status="302 Found")


Handler = Callable[[Exchange], Awaitable[None]]


@dataclass
class HostileServer:
    """`routes` are looked up by the path's first part: `/ok/17?x=1` is `ok`. Others are 404."""

    routes: dict[str, Handler]
    port: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    under_way: Counter[str] = field(default_factory=Counter)
    most_of_a_host: int = 0
    most: int = 0
    user_agents: set[str] = field(default_factory=set)
    heads: list[str] = field(default_factory=list)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                first = await reader.readexactly(1)
                if first == b"\x16":  # a TLS handshake
                    writer.write(b"HTTP/1.1 400 plain text only\r\n\r\n")
                    return
                head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                self.heads.append("\n".join(head))
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                self.user_agents.add(headers.get("user-agent", ""))
                await self._one(head[0].split(" ")[1].strip("/"), headers["host"], reader, writer)
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # the client left, or the test has ended
        finally:
            writer.close()

    async def _one(self, path: str, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests[path] += 1
        self.under_way[host] += 1
        self.most_of_a_host = max(self.most_of_a_host, self.under_way[host])
        self.most = max(self.most, self.under_way.total())
        exchange = Exchange(path, host, self.requests[path], reader, writer)
        try:
            handler = self.routes.get(path.partition("/")[0])
            await (handler(exchange) if handler else exchange.answer(b"gone", status="404 Not Found"))
        finally:
            self.under_way[host] -= 1


async def until_left(exchange: Exchange) -> None:
    """Say nothing more until the client goes."""
    await exchange.reader.read()
    raise ConnectionError


async def slow_headers(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.send(b"X-A: b\r\n")
        await asyncio.sleep(0.05)


async def drip(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for byte in PNG + bytes(1000):
        await exchange.send(bytes([byte]))
        await asyncio.sleep(0.05)


async def endless(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PNG)
    while True:
        await exchange.send(bytes(65_536))


async def endless_headers(exchange: Exchange) -> None:
    await exchange.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await exchange.send(b"X-A: " + b"b" * 4096 + b"\r\n")


async def loop(exchange: Exchange) -> None:
    await exchange.redirect(f"/loop/{exchange.number}")


async def gzip_bomb(exchange: Exchange) -> None:
    await exchange.answer(gzip.compress(bytes(20_000_000)), "Content-Encoding: gzip", "Content-Type: image/png")


async def reset(exchange: Exchange) -> None:
    """Half of the body, then RST."""
    await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + PNG)
    await asyncio.sleep(0.02)
    exchange.writer.transport.abort()
    raise ConnectionError


async def too_short(exchange: Exchange) -> None:
    await exchange.answer(PNG, "Connection: close", length=len(PNG) + 100)
    raise ConnectionError


async def ok(exchange: Exchange) -> None:
    await exchange.answer(PNG, 'ETag: "x"', "Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT", "Content-Type: text/html")


ROUTES: dict[str, Handler] = {
    "ok": ok,
    "silent": until_left,
    "slow_headers": slow_headers,
    "drip": drip,
    "endless": endless,
    "endless_headers": endless_headers,
    "loop": loop,
    "gzip_bomb": gzip_bomb,
    "reset": reset,
    "too_short": too_short,
    "too_long": lambda exchange: exchange.answer(PNG + b"more", length=len(PNG)),
    "huge": lambda exchange: exchange.answer(b"", length=10**12),
    "empty": lambda exchange: exchange.answer(b""),
    "html": lambda exchange: exchange.answer(b"<!doctype html><title>hello</title>", "Content-Type: image/png"),
    "tiny": lambda exchange: exchange.answer(b"\xff\xd8"),
    "no_http": lambda exchange: exchange.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    "no_location": lambda exchange: exchange.answer(b"", status="302 Found"),
    "no_content": lambda exchange: exchange.answer(b"", status="204 No Content"),
}


@contextmanager
def hostile_server(extra: dict[str, Handler] | None = None, tls: ssl.SSLContext | None = None) -> Iterator[HostileServer]:
    """The server in a thread of its own, at a free port."""
    server = HostileServer(ROUTES | (extra or {}))
    event_loop = asyncio.new_event_loop()
    stop = asyncio.Event()
    started = threading.Event()

    async def run() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=tls)
        server.port = listening.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        listening.close()

    def main() -> None:
        event_loop.run_until_complete(run())
        tasks = asyncio.all_tasks(event_loop)
        for task in tasks:
            task.cancel()
        if tasks:
            event_loop.run_until_complete(asyncio.wait(tasks))
        event_loop.close()

    thread = threading.Thread(target=main)
    thread.start()
    assert started.wait(10)
    try:
        yield server
    finally:
        event_loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.005)
