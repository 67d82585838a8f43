"""A real S3 API on loopback: moto's server as a process of its own, and the usual environment to reach it.

`s3_server` starts it once for the session; `s3` points this process' AWS_* variables at it for one test and gives a
function that makes fresh buckets. Other processes (a command line, Ray's workers) get `S3Server.environment`.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from uuid import uuid4

import pytest

DEADLINE_S = 60
# In this process it would share the interpreter lock with streams that wait for it.
SERVE = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests close the pipe, also by dying
server.stop()
"""
MakeBucket = Callable[[], str]


@dataclass(frozen=True)
class S3Server:
    """Where the server is, and the variables that lead S3 clients to it."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def make_bucket(self, name: str | None = None) -> str:
        """A new bucket's URL."""
        name = name or f"test-{uuid4().hex}"
        # moto takes unsigned requests, so this needs no client whose settings could outlive it.
        with urllib.request.urlopen(urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")):
            return f"s3://{name}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    pytest.importorskip("moto.server", reason="moto[s3] is absent: this test needs an S3 server")
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            server = S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
            wait_for(server)
            yield server
        finally:
            process.kill()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBucket]:
    """Makes buckets, and S3 file systems opened in this test reach them."""
    import s3fs

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # one made before would go on to where it was made for
    yield s3_server.make_bucket
    s3fs.S3FileSystem.clear_instance_cache()


def wait_for(server: S3Server) -> None:
    begun = time.monotonic()
    while True:
        try:
            with urllib.request.urlopen(f"{server.endpoint}/moto-api/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() - begun < DEADLINE_S, f"no answer from {server.endpoint}"
            time.sleep(0.05)
