"""A real service under steady load with real image bodies: what is killed is replaced, the model changes, and nobody notices."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from sightline.serve.client import RETRY_S
from sightline.serve.served import digest
from tests.faults.serving import Load, photo, running, wait_until
from tests.serve.test_rollout import pair

__all__ = ["pair"]  # a fixture


@pytest.mark.parametrize("again_s", [RETRY_S, pytest.param(0.0, marks=pytest.mark.campaign)], ids=["asked again", "asked once"])
def test_kills_a_rollout_and_the_end_cost_no_request(
    pair: tuple[Path, Path], cli_environment: dict[str, str], again_s: float
) -> None:
    old, new = (digest(str(path)) for path in pair)
    with running(pair[0], cli_environment, "--replicas", 2, "--cpus-per-replica", 0.5) as service:
        assert "<title>Sightline</title>" in httpx.get(service.url).text
        assert service.pids("haproxy") and not [one for one in service.listeners() if one[0] == "haproxy"]
        load = Load(service.url, photo(200), 15, again_s)
        load.begin()
        wait_until(lambda: len(load.asked) > 15)
        killed = service.kill("replica")
        done = service.rollout(pair[1])
        assert done.returncode == 0, done.stderr
        after = time.monotonic()
        wait_until(lambda: service.replaced("replica", killed, 2))
        wait_until(lambda: len([one for one in load.asked if one.at > after]) > 15)
        load.end()
        assert [one.outcome for one in load.failed()] == []
        assert {one.artifact for one in load.asked} == {old, new}
        assert {one.artifact for one in load.asked if one.at > after} == {new}

        def ask(number: int) -> Any:
            return httpx.post(f"{service.url}/v1/embeddings", json={"input": [f"{number} {i}" for i in range(250)]}, timeout=60)

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number) for number in range(4)]
            wait_until(lambda: 'path="/v1/embeddings"' in httpx.get(f"{service.url}/metrics").text or asked[0].done())
            service.process.terminate()
            assert [one.result().status_code for one in asked] == [200] * 4
        assert service.process.wait(90) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(service.url)
