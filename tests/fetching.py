"""Downloads for tests: from a hostile server on loopback, by names with chosen addresses, through a chosen gate."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace

from aiohttp.abc import AbstractResolver, ResolveResult

from sightline.fetch.addresses import BlockedError
from sightline.fetch.result import Failed, Fetched, FetchOptions
from sightline.pipelines.ingest.fetch.downloads import Downloads
from tests.hostile_server import Handler, HostileServer, hostile_server

QUICK = FetchOptions(total_timeout_s=10, idle_timeout_s=5, retries=1, backoff_s=0.01, max_bytes=1_000_000, allow_loopback=True)
IMPATIENT = replace(QUICK, total_timeout_s=0.6, idle_timeout_s=0.3)
Gate = Callable[[str, int], None]


class Names(AbstractResolver):
    """Names with given addresses; of several lists, each lookup takes the next. Every other name is 127.0.0.1."""

    def __init__(self, names: Mapping[str, list[list[str]]] | None = None) -> None:
        self.names = {name: list(answers) for name, answers in (names or {}).items()}

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        answers = self.names.get(host, [["127.0.0.1"]])
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            {"hostname": host, "host": each, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0} for each in addresses
        ]

    async def close(self) -> None:
        pass


def only(server: HostileServer, seen: list[str] | None = None) -> Gate:
    """A gate to this server's one address, as if it were public, and to nothing else."""

    def gate(address: str, port: int) -> None:
        if seen is not None:
            seen.append(address)
        if (address, port) != ("127.0.0.1", server.port):
            raise BlockedError("blocked_address", f"{address} is no public address")

    return gate


def fetch(
    *urls: str, options: FetchOptions = QUICK, resolver: AbstractResolver | None = None, gate: Gate | None = None
) -> list[Fetched | Failed]:
    with Downloads(options, resolver=resolver, gate=gate) as downloads:
        return list(downloads.fetch_all(urls))


def failure(url: str, options: FetchOptions = QUICK, resolver: AbstractResolver | None = None, gate: Gate | None = None) -> Failed:
    (result,) = fetch(url, options=options, resolver=resolver, gate=gate)
    assert isinstance(result, Failed), result
    assert result.url == url
    return result


def served(handler: Handler, **options: object) -> tuple[Fetched | Failed, HostileServer]:
    """The result of /x where this handler answers, and the server to ask what it saw."""
    with hostile_server({"x": handler}) as server:
        (result,) = fetch(server.url("x"), options=replace(QUICK, **options))  # type: ignore[arg-type]
    return result, server
