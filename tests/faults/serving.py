"""A real `sightline serve` under steady load, while its processes are killed and its model changes.

Load is open-loop: requests begin at fixed moments, whether or not earlier ones have been answered, as users do. Nothing is asked
again, what fails fails; unless the load is told to ask like the documented client (`serve/client.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from sightline.serve.client import RETRY_EVERY_S
from tests.serve.conftest import free_port

# What Ray's processes call themselves.
TITLES = {
    "replica": "ray::ServeReplica:sightline:Replica",
    "proxy": "ray::ProxyActor",
    "manager": "ray::HAProxyManager",
    "controller": "ray::ServeController",
    "haproxy": "haproxy",
}
STARTS_WITHIN_S, ENDS_WITHIN_S = 120, 90


@dataclass(frozen=True)
class Asked:
    """A request of the load: when it began (seconds), how long it took, and what came of it: `ok`, or why not."""

    at: float
    seconds: float
    outcome: str
    artifact: str | None = None


@dataclass
class Load:
    """Requests at a steady rate, from `begin` to `end`. `again_s`: for how long what fails is asked again."""

    url: str
    body: bytes
    per_s: float
    again_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)

    def begin(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def failed(self) -> list[Asked]:
        return [one for one in self.asked if one.outcome != "ok"]

    def quantile(self, share: float, since: float = 0.0, until: float = float("inf")) -> float:
        """Seconds, of the requests that began in between."""
        return float(np.quantile([one.seconds for one in self.asked if since <= one.at < until], share))

    async def _run(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
            number = 0
            while not self._stop.is_set():
                await asyncio.sleep(max(0.0, began + number / self.per_s - time.monotonic()))
                number += 1
                task = asyncio.create_task(self._ask(session))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        began = time.monotonic()
        outcome, artifact = await self._try(session)
        while outcome != "ok" and time.monotonic() < began + self.again_s:
            await asyncio.sleep(RETRY_EVERY_S)
            outcome, artifact = await self._try(session)
        self.asked.append(Asked(began, time.monotonic() - began, outcome, artifact))

    async def _try(self, session: aiohttp.ClientSession) -> tuple[str, str | None]:
        """The outcome of one request, and which artifact answered."""
        form = aiohttp.FormData({"labels": "a cat, a dog, snow"})
        form.add_field("image", self.body, filename="photo.jpg")
        artifact = None
        try:
            async with session.post(f"{self.url}/v1/classify", data=form) as response:
                text = await response.text()
                outcome = "ok" if response.status == 200 else f"{response.status} {text[:200]}"
                artifact = json.loads(text)["artifact"] if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome = f"{type(error).__name__}: {error}"
        return outcome, artifact


@dataclass(frozen=True)
class Running:
    """A `sightline serve` in a process group of its own."""

    process: subprocess.Popen[str]
    url: str
    ray: str
    environment: Mapping[str, str]

    def pids(self, title: str) -> list[int]:
        """Processes of that kind (of `TITLES`)."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
                if line.startswith(TITLES[title]) or (title == "haproxy" and child.name() == "haproxy"):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return sorted(found)

    def kill(self, title: str) -> int:
        """SIGKILL for one of that kind; its pid."""
        pid = self.pids(title)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def replaced(self, title: str, pid: int, count: int) -> bool:
        """Whether there are that many again, without the one that was killed."""
        now = self.pids(title)
        return len(now) >= count and pid not in now

    def rollout(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        verb = [sys.executable, "-m", "sightline", "rollout", *map(str, arguments), "--address", self.ray, "--json"]
        return subprocess.run(verb, env=dict(self.environment), capture_output=True, text=True, timeout=120)

    def listeners(self) -> set[tuple[str, str]]:
        """(process name, address) of whatever listens beyond loopback."""
        found = set()
        for process in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            try:
                for one in process.net_connections("inet"):
                    if one.status == psutil.CONN_LISTEN and not one.laddr.ip.endswith(("127.0.0.1", "::1")):
                        found.add((process.name(), f"{one.laddr.ip}:{one.laddr.port}"))
            except psutil.Error:
                continue
        return found


@contextmanager
def running(model: Path, environment: Mapping[str, str], *options: object) -> Iterator[Running]:
    """`sightline serve`, once it answers; at the end nothing of it is left."""
    verb: Sequence[Any] = [sys.executable, "-m", "sightline", "serve", model, "--port", free_port(), "--json", *options]
    process = subprocess.Popen(
        [str(word) for word in verb], env=dict(environment), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    children: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        children = psutil.Process(process.pid).children(recursive=True)
        yield Running(process, ready["url"], ready["ray"], environment)
    finally:
        if process.poll() is None:
            process.terminate()  # not its group: Ray's own processes are needed for a good end
            try:
                process.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def wait_until(condition: Any, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def photo(kilobytes: int = 200) -> bytes:
    """A JPEG of about that size: noise does not compress."""
    import simplejpeg

    side = int((kilobytes * 1000 * 2.0) ** 0.5)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return bytes(simplejpeg.encode_jpeg(noise, quality=50, colorspace="RGB"))
