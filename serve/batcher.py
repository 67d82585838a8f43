"""Images of concurrent requests share passes of the tower.

One batch is in the tower, and meanwhile the next one gathers, up to `max_batch`; a tower that is free takes whatever waits. Who
just got an answer often asks again: so right after a batch the tower waits until as many are there as were then, at most for a
quarter of what that batch took. (Else few clients take turns in two halves, and batches are half as large as they could be.) A lone
request pays nothing, and under load batches are as large as the tower is slow.

An item whose request has gone away or is past its deadline is dropped before it reaches the tower. A batcher belongs to one model:
no batch mixes two.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Generic, TypeVar

from sightline.serve import deadline

AGAIN = 0.25  # of what the last batch took: how long the next one waits for those who had an answer

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Waiting(Generic[T, R]):
    """An item in the queue; `since` and `ends` are on the monotonic clock."""

    item: T
    answer: asyncio.Future[R]
    since: float
    ends: float


class Batcher(Generic[T, R]):
    """Call it with an item; it gives what `run` made of it. Used within one event loop.

    Args:
        run: a list of items → as many results, in order; what it raises, every item of that batch gets.
        max_batch: items of one batch.
        wait_s: how long the first item of a batch waits for others although the tower is free.
        turn: held while a batch runs; what else uses the tower's cores holds it meanwhile. Who is in the batch is decided then.
        observe: told of each batch, the seconds that its items waited.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Awaitable[Sequence[R]]],
        max_batch: int,
        wait_s: float = 0.0,
        turn: asyncio.Lock | None = None,
        observe: Callable[[list[float]], None] = lambda waited_s: None,
    ) -> None:
        self._run, self._max_batch, self._wait_s, self._observe = run, max_batch, wait_s, observe
        self._turn = turn or asyncio.Lock()
        self._queue: deque[Waiting[T, R]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self._arrived = asyncio.Event()
        # Of the last batch: how many were in it or waited when it ended, when that was, and how long it took.
        self._company, self._ended, self._took_s = 0, 0.0, 0.0

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._queue)

    async def __call__(self, item: T) -> R:
        """Raises: ProblemError: the request's deadline passed before there was room in the tower (503)."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append(Waiting(item, answer, time.monotonic(), deadline.ends()))
        self._arrived.set()
        if self._worker is None or self._worker.done():
            # In a context of its own: it works for many requests, and has nobody's deadline.
            self._worker = asyncio.create_task(self._work(), context=Context())
        return await answer

    async def _work(self) -> None:
        while self._queue:
            await self._gather()
            async with self._turn:
                if batch := self._take():
                    began = time.monotonic()
                    self._observe([began - waiting.since for waiting in batch])
                    await self._answer(batch)
                    self._ended = time.monotonic()
                    self._company, self._took_s = len(batch) + len(self._queue), self._ended - began

    async def _gather(self) -> None:
        """Wait for others, `wait_s` in any case, and where a batch has just ended, for as many as there were."""
        began = time.monotonic()
        again_s = self._took_s * AGAIN if self._company > 1 and began - self._ended < self._took_s * AGAIN else 0.0
        if not (patience_s := max(self._wait_s, again_s)):
            return
        wanted = min(self._max_batch, self._company) if again_s > self._wait_s else self._max_batch
        try:
            async with asyncio.timeout(patience_s):
                while len(self._queue) < wanted:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            pass

    def _take(self) -> list[Waiting[T, R]]:
        """The next batch, without those that nobody waits for."""
        batch: list[Waiting[T, R]] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if waiting.answer.done():  # cancelled: the client has gone
                continue
            if deadline.passed(waiting.ends):
                waiting.answer.set_exception(deadline.late())
            else:
                batch.append(waiting)
        return batch

    async def _answer(self, batch: list[Waiting[T, R]]) -> None:
        try:
            results = await self._run([waiting.item for waiting in batch])
            assert len(results) == len(batch)
        except Exception as error:  # broad on purpose: whatever it is, those who wait for it must hear of it
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(error)
            return
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(result)
