"""Sightline's commands as jobs of a Ray cluster, through its job server.

Invariant: a job runs the package that was shipped with it (its digest is in the job's metadata), not whatever the
cluster has installed, and not the folder where it happens to start. What a job prints is shown once, however often the
connection breaks; losing the connection never stops a job.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import aiohttp
import httpx
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from sightline.infra.package import Package
from sightline.infra.session import ray_session

# From the signal to stop until the kill (Ray's default: 3 s): time to end cleanly. A stopped run goes on from its last checkpoint.
STOP_WAIT_S = 60
# For how long an unreachable job server is asked again, before the command gives up following (the job goes on).
LOST_CONTACT_S = 60
CONNECT_S = 10
# RuntimeError is what Ray's client makes of a broken log connection and of a server error.
LOST_CONTACT = (aiohttp.ClientError, requests.RequestException, ConnectionError, RuntimeError)
# These loggers of Ray's client report each of its steps, and set their own level.
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")


@dataclass(frozen=True)
class Server:
    """A job server.

    Attributes:
        client: Ray's client, connected.
        address: its URL.
        local: it runs on this machine for this command only, and ends with it.
    """

    client: JobSubmissionClient
    address: str
    local: bool


@contextmanager
def job_server(address: str | None) -> Iterator[Server]:
    """The job server at an address, or that of a local Ray which ends with the context.

    Args:
        address: `http://HEAD:8265` or https; None starts a local one.

    Raises:
        ValueError: the address is of another kind, or the server wants a token.
        ConnectionError: nothing answers there, or no job server.
    """
    if address is not None:
        url = address.rstrip("/")
        yield Server(connect(url), url, local=False)
        return
    with ExitStack() as running:
        with free_agent_port(), ctrl_c_ignored():
            running.enter_context(ray_session(dashboard=True))
        # With a Ray already there, init starts nothing and returns its context.
        context = ray.init(ignore_reinit_error=True, logging_level=logging.ERROR)
        url = f"http://{context.dashboard_url}"
        yield Server(connect(url), url, local=True)


def free_agent_port() -> AbstractContextManager[object]:
    """Let a local Ray that starts meanwhile run jobs although another Ray runs on this machine.

    The node's agent starts the jobs, and listens on one fixed port (52365), whoever has it already. `ray start` has an
    option for that and `ray.init` has none (2.60), so the class behind both gets another default.
    """
    anywhere = functools.partial(ray._private.parameter.RayParams, dashboard_agent_listen_port=0)
    return mock.patch("ray._private.parameter.RayParams", anywhere)


@contextmanager
def ctrl_c_ignored() -> Iterator[None]:
    """Processes that start meanwhile ignore Ctrl-C for good, as they inherit that.

    A terminal sends it to all of them. Ray blocks it, but the dashboard's multiprocessing lets it through again, and the
    dashboard would be half dead when it is asked to stop the job. Only the main thread may set signals; another leaves
    them as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at `http(s)://…`; raises as `job_server` says."""
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address!r} is no job server's address: give its URL, such as http://HEAD:8265")
    nothing = f"no Ray job server answers at {address}: name its URL, such as http://HEAD:8265, or leave it out"
    try:  # Ray's client would wait for minutes
        httpx.get(f"{address}/api/version", timeout=CONNECT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConnectionError(f"{nothing} ({error})") from error
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray lets RAY_ADDRESS override its client's argument, and this variable override both.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        how = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        raise ValueError(f"{address} wants a valid token: {how}") from error
    except (requests.RequestException, RuntimeError, ConnectionError, KeyError) as error:
        raise ConnectionError(nothing) from error


def send(server: Server, command: Sequence[str], package: Package) -> str:
    """Start `sightline COMMAND...` as a job and return its id.

    Raises:
        ConnectionError: the server does not take it.
    """
    try:
        return server.client.submit_job(
            entrypoint=entrypoint(command, Path.cwd() if server.local else None),
            runtime_env={
                "py_modules": [str(package.folder)],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)},
            },
            metadata={
                "sightline_command": shlex.join(command),
                "sightline_package": package.name,
                "sightline_sha256": package.sha256,
            },
        )
    except (requests.RequestException, RuntimeError) as error:
        raise ConnectionError(f"{server.address} did not take the job: {error}") from error


def entrypoint(command: Sequence[str], folder: Path | None) -> str:
    """The job's shell line: the user's own folder and Python on this machine, else the cluster's `python`.

    -P keeps the folder where it starts off the path: a checkout there would hide the package that was shipped.
    """
    if folder is None:
        return f"exec python -P -m sightline {shlex.join(command)}"
    return f"cd {shlex.quote(str(folder))} && exec {shlex.quote(sys.executable)} -P -m sightline {shlex.join(command)}"


def follow(server: Server, job_id: str, write: Callable[[str], object]) -> JobDetails:
    """Write a job's log until it ends, and return how it ended.

    Raises:
        ValueError: there is no such job.
        ConnectionError: the job server was unreachable for `LOST_CONTACT_S`; the job may well go on.
    """
    details = info(server, job_id)
    log = Log(server.client, job_id, write)
    lost_at: float | None = None
    while True:
        try:
            asyncio.run(log.copy())
            details = server.client.get_job_info(job_id)
            lost_at = None
        except LOST_CONTACT as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > LOST_CONTACT_S:
                was = f"job {job_id} was {details.status.value} and may go on"
                raise ConnectionError(f"lost contact with {server.address}; {was}: {error}") from error
        if details.status.is_terminal():
            return details
        time.sleep(1)


class Log:
    """A job's log, written once: every new connection begins anew, so what was written before is passed over."""

    def __init__(self, client: JobSubmissionClient, job_id: str, write: Callable[[str], object]) -> None:
        self.client, self.job_id, self.write = client, job_id, write
        self.written_chars = 0

    async def copy(self) -> None:
        """Write what comes, until the job ends or the connection does."""
        position = 0
        async for text in self.client.tail_job_logs(self.job_id):
            fresh = text[max(0, self.written_chars - position) :]
            position += len(text)
            if fresh:
                self.write(fresh)
                self.written_chars = position


def info(server: Server, job_id: str) -> JobDetails:
    """What the server knows of a job.

    Raises:
        ValueError: there is no such job.
    """
    try:
        return server.client.get_job_info(job_id)
    except RuntimeError as error:
        known = [job.submission_id for job in server.client.list_jobs() if job.submission_id]
        raise ValueError(f"no job {job_id!r} at {server.address}; it has: {', '.join(known) or 'none'}") from error


def stop(server: Server, job_id: str) -> JobDetails:
    """Ask a job to end, and wait until it did; one that waits for resources may stay PENDING for a while.

    Raises:
        ValueError: there is no such job.
    """
    info(server, job_id)
    server.client.stop_job(job_id)
    deadline = time.monotonic() + STOP_WAIT_S + 10
    while not (details := info(server, job_id)).status.is_terminal() and time.monotonic() < deadline:
        time.sleep(0.5)
    return details


def exit_code(details: JobDetails) -> int:
    """0 for SUCCEEDED, else the command's own status (128 + n for signal n, as shells say), or 1 if it has none."""
    if details.status == JobStatus.SUCCEEDED:
        return 0
    code = details.driver_exit_code or 1
    return 128 - code if code < 0 else code
