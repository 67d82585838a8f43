"""What meets in a batch, and who is dropped before it: with a tower that the test holds in its hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from sightline.serve import deadline
from sightline.serve.batcher import Batcher
from sightline.serve.problems import ProblemError


class Tower:
    """Doubles numbers, batch by batch, each when it is let; -1 breaks its batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def run(self, items: list[int]) -> Sequence[int]:
        self.batches.append(items)
        await self.go.wait()
        if -1 in items:
            raise RuntimeError("broken")
        return [2 * item for item in items]


async def begun(tower: Tower, batches: int) -> None:
    while len(tower.batches) < batches:
        await asyncio.sleep(0)


def test_a_free_tower_takes_one_at_once_and_a_busy_one_gathers() -> None:
    async def scenario() -> None:
        tower = Tower()
        waited: list[int] = []
        batcher = Batcher(tower.run, max_batch=3, observe=lambda seconds: waited.append(len(seconds)))
        first = asyncio.create_task(batcher(0))
        await begun(tower, 1)
        rest = [asyncio.create_task(batcher(i)) for i in range(1, 6)]
        await asyncio.sleep(0)
        assert len(batcher) == 5
        tower.go.set()
        assert await asyncio.gather(first, *rest) == [0, 2, 4, 6, 8, 10]
        assert tower.batches == [[0], [1, 2, 3], [4, 5]]
        assert waited == [1, 3, 2]

    asyncio.run(scenario())


def test_those_who_had_an_answer_are_waited_for_a_while() -> None:
    """Three clients of which each asks again at once stay together, and one that stays alone is not held up."""

    async def scenario() -> None:
        batches: list[int] = []

        async def run(items: list[int]) -> Sequence[int]:
            batches.append(len(items))
            await asyncio.sleep(0.2)
            return items

        batcher = Batcher(run, max_batch=8)

        async def client(number: int) -> None:
            for _ in range(4):
                await batcher(number)
                await asyncio.sleep(0.01)  # an answer's and a question's way

        await asyncio.gather(*(client(number) for number in range(3)))
        assert batches == [1, 2, 3, 3, 3] or batches[2:-1] == [3] * len(batches[2:-1])
        lone = time.monotonic()
        await batcher(0)
        await batcher(0)
        await batcher(0)
        assert batches[-3:] == [1, 1, 1]
        assert time.monotonic() - lone < 3 * 0.2 + 0.15  # once a quarter of a batch's time, then none

    asyncio.run(scenario())


def test_the_first_waits_for_others_if_told_to() -> None:
    async def scenario() -> None:
        tower = Tower()
        tower.go.set()
        batcher = Batcher(tower.run, max_batch=8, wait_s=0.05)
        first = asyncio.create_task(batcher(1))
        await asyncio.sleep(0)
        assert await asyncio.gather(first, batcher(2)) == [2, 4]
        assert tower.batches == [[1, 2]]

    asyncio.run(scenario())


def test_who_has_gone_or_is_late_does_not_reach_the_tower() -> None:
    async def late(batcher: Batcher[int, int], item: int) -> int:
        deadline.set_deadline(0)
        return await batcher(item)

    async def scenario() -> None:
        tower = Tower()
        batcher = Batcher(tower.run, max_batch=8)
        first = asyncio.create_task(batcher(0))
        await begun(tower, 1)
        gone, too_late, stays = (asyncio.create_task(one) for one in (batcher(1), late(batcher, 2), batcher(3)))
        await asyncio.sleep(0)
        gone.cancel()
        tower.go.set()
        assert await asyncio.gather(first, stays) == [0, 6]
        assert tower.batches == [[0], [3]]
        with pytest.raises(ProblemError, match="deadline") as raised:
            await too_late
        assert (raised.value.status, raised.value.retry_after_s) == (503, 1)

    asyncio.run(scenario())


def test_a_batch_that_fails_fails_for_its_own_and_the_next_one_works() -> None:
    async def scenario() -> None:
        tower = Tower()
        tower.go.set()
        batcher = Batcher(tower.run, max_batch=2)
        answers = await asyncio.gather(*(batcher(item) for item in (-1, 1, 2)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [RuntimeError, RuntimeError, int]
        assert await batcher(4) == 8

    asyncio.run(scenario())
