"""Many downloads at a time: their order, their limits, their end."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from dataclasses import replace

import pytest

from sightline.fetch.result import Failed, Fetched
from sightline.pipelines.ingest.fetch.downloads import Downloads
from tests.fetching import QUICK, Names, fetch
from tests.hostile_server import PNG, Exchange, hostile_server, png, until_left, wait_until

# --- many at a time


def test_results_come_in_input_order() -> None:
    bodies = {f"body/{i}": png(i + 1) for i in range(40)}

    async def body(exchange: Exchange) -> None:
        await asyncio.sleep(0.03 * (-int(exchange.path.partition("/")[2]) % 5))
        await exchange.answer(bodies[exchange.path])

    with hostile_server({"body": body}) as server:
        results = fetch(*map(server.url, bodies), "nonsense", server.url("ok"), options=replace(QUICK, per_host=8))
    assert [result.data if isinstance(result, Fetched) else result.code for result in results] == [
        *bodies.values(),
        "bad_url",
        PNG,
    ]


def test_one_host_gets_few_requests_at_a_time_and_all_hosts_together_many() -> None:
    async def slowly(exchange: Exchange) -> None:
        await asyncio.sleep(0.03)
        await exchange.answer(PNG)

    with hostile_server({"x": slowly}) as server:
        urls = [server.url(f"x/{i}", f"host{i % 4}.test") for i in range(40)]
        options = replace(QUICK, per_host=2, concurrency=16, respect_robots_txt=False)
        assert all(isinstance(result, Fetched) for result in fetch(*urls, options=options, resolver=Names()))
    assert server.most_of_a_host == 2
    assert server.most > 4


def test_requests_that_are_redirected_to_one_host_share_its_limit() -> None:
    async def redirect(exchange: Exchange) -> None:
        await exchange.redirect(server.url("y/" + exchange.path, "cdn.test"))

    async def slowly(exchange: Exchange) -> None:
        await asyncio.sleep(0.02)
        await exchange.answer(PNG)

    with hostile_server({"x": redirect, "y": slowly}) as server:
        urls = [server.url(f"x/{i}", f"host{i}.test") for i in range(20)]
        options = replace(QUICK, per_host=2, respect_robots_txt=False)
        assert all(isinstance(result, Fetched) for result in fetch(*urls, options=options, resolver=Names()))
    assert server.most_of_a_host == 2


def test_a_slow_host_takes_its_share_of_the_window_and_no_more() -> None:
    release = threading.Event()

    async def hold(exchange: Exchange) -> None:
        while not release.is_set():
            await asyncio.sleep(0.005)
        await exchange.answer(PNG)

    with hostile_server({"hold": hold}) as server:
        urls = [server.url(f"hold/{i}", "slow.test") for i in range(6)]
        urls += [server.url(f"ok/{i}", f"fast{i}.test") for i in range(20)]
        options = replace(QUICK, per_host=2, concurrency=8, respect_robots_txt=False, total_timeout_s=20, idle_timeout_s=20)
        with Downloads(options, resolver=Names()) as downloads:
            results = downloads.fetch_all(urls)
            came: list[Fetched | Failed] = []
            waiting = threading.Thread(target=lambda: came.extend(results))
            waiting.start()
            # Six results wait in memory, and two downloads are under way: the window of eight is full.
            wait_until(lambda: sum(server.requests[f"ok/{i}"] for i in range(20)) == 6)
            assert server.under_way[f"slow.test:{server.port}"] == 2
            time.sleep(0.1)  # in which a window that leaks would begin another
            assert server.requests.total() == 8
            release.set()
            waiting.join(10)
            assert [result.url for result in came if isinstance(result, Fetched)] == urls
    assert server.most_of_a_host == 2


def test_no_more_bodies_than_the_window_are_asked_for_while_the_consumer_pauses() -> None:
    with hostile_server() as server:
        options = replace(QUICK, concurrency=4, respect_robots_txt=False)
        with Downloads(options, resolver=Names()) as downloads:
            results = downloads.fetch_all(server.url(f"ok/{i}", f"h{i}.test") for i in range(100))
            for taken in range(1, 6):
                next(results)
                assert server.requests.total() <= taken + 4
    assert server.most <= 4


def test_an_endless_iterable_is_fine() -> None:
    with hostile_server() as server, Downloads(QUICK) as downloads:
        results = downloads.fetch_all(server.url(f"ok/{i}") for i in iter(int, 1))
        assert all(isinstance(next(results), Fetched) for _ in range(20))


@pytest.mark.parametrize("how", ["generator", "downloads"])
def test_leaving_early_cancels_what_is_under_way(how: str) -> None:
    with hostile_server() as server:
        options = replace(QUICK, total_timeout_s=60, idle_timeout_s=60, per_host=8, respect_robots_txt=False)
        downloads = Downloads(options)
        results = downloads.fetch_all([server.url("ok"), *(server.url(f"silent/{i}") for i in range(6))])
        assert isinstance(next(results), Fetched)
        wait_until(lambda: server.under_way.total() == 6)
        begun = time.monotonic()
        (results if how == "generator" else downloads).close()
        wait_until(lambda: server.under_way.total() == 0)
        assert time.monotonic() - begun < 2
        downloads.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "sightline-fetch"]


def test_an_interrupt_is_heard_while_waiting() -> None:
    async def interrupt(exchange: Exchange) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        await until_left(exchange)

    with hostile_server({"x": interrupt}) as server:
        options = replace(QUICK, total_timeout_s=60, idle_timeout_s=60)
        with pytest.raises(KeyboardInterrupt), Downloads(options) as downloads:
            list(downloads.fetch_all([server.url("x")]))
        wait_until(lambda: server.under_way.total() == 0)


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"retries": -1}, {"user_agent": "a\r\nHost: b"}, {"user_agent": ""}, {"total_timeout_s": 0.0}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must"):
        replace(QUICK, **wrong)  # type: ignore[arg-type]
