"""Downloads for code that is not asynchronous: URLs in, results out in the same order, with a bound on memory.

One event loop runs in one thread. The caller's own thread decides what begins (see `window`), whenever it asks for the
next result: so nothing runs ahead of a consumer by more than the window, and leaving the generator ends everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Self

from aiohttp.abc import AbstractResolver

from sightline.fetch.client import Client, Gate
from sightline.fetch.result import Failed, Fetched, FetchOptions, RefusedError
from sightline.fetch.urls import parse
from sightline.pipelines.ingest.fetch.window import Window

LOOKAHEAD = 16  # URLs that are known for each that may run: enough other hosts while one is slow
Result = Fetched | Failed


class Downloads:
    """A client in a thread of its own; close it, or use it as a context manager.

    `resolver` and `gate` are for tests, see `Client`.
    """

    def __init__(self, options: FetchOptions, *, resolver: AbstractResolver | None = None, gate: Gate | None = None) -> None:
        self._options = options
        self._client = Client(options, resolver, gate)
        self._loop = asyncio.new_event_loop()
        # Names are resolved in threads: with the few of the default, some slow names would hold up all others.
        self._resolving = ThreadPoolExecutor(options.concurrency, thread_name_prefix="sightline-dns")
        self._loop.set_default_executor(self._resolving)
        self._thread = Thread(target=self._loop.run_forever, name="sightline-fetch", daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._client.__aenter__(), self._loop).result()

    def fetch_all(self, urls: Iterable[str]) -> Generator[Result, None, None]:
        """The result of each URL, in order.

        Leaving the generator early (`close`, an exception, an interrupt) cancels what is under way.
        """
        slots = self._options.concurrency
        coming = enumerate(urls)
        window = Window(slots, self._options.per_host)
        waiting: dict[int, str] = {}
        begun: dict[int, Future[Result]] = {}
        ready: dict[int, Result] = {}
        done: SimpleQueue[int] = SimpleQueue()
        read = delivered = 0

        def take() -> None:
            number = done.get()
            ready[number] = begun.pop(number).result()
            window.finish(number)

        try:
            while True:
                while not done.empty():
                    take()
                for number, url in islice(coming, slots * LOOKAHEAD - (read - delivered)):
                    waiting[number] = url
                    window.add(number, host_of(url))
                    read += 1
                for number in iter(window.begin, None):
                    begun[number] = asyncio.run_coroutine_threadsafe(self._client.fetch(waiting.pop(number)), self._loop)
                    begun[number].add_done_callback(partial(_put, done, number))
                if delivered in ready:
                    window.deliver()
                    delivered += 1
                    yield ready.pop(delivered - 1)
                elif delivered < read:
                    take()
                else:
                    return
        finally:
            for future in begun.values():
                future.cancel()

    def close(self) -> None:
        """Cancel everything, close the connections, end the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._resolving.shutdown(wait=False, cancel_futures=True)  # a name that is being looked up cannot be interrupted
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _end(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._client.__aexit__(None, None, None)


def _put(done: SimpleQueue[int], number: int, _: Future[Result]) -> None:
    done.put(number)


def host_of(url: str) -> str:
    """What a URL is counted under; bad ones, which end at once, share a host."""
    try:
        return (parse(url).raw_host or "").lower()
    except RefusedError:
        return ""
