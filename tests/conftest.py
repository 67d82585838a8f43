"""What tests share: one local Ray for the session, the command line as a person runs it, the data beside the checkout.

Nothing here may touch the machine's own Ray: each fixture uses a home, a temporary folder and a cluster of its own.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.s3 import s3, s3_server

__all__ = ["s3", "s3_server"]  # fixtures
CHECKOUT = Path(__file__).resolve().parent.parent
CommandLine = Callable[..., subprocess.CompletedProcess[str]]
InlineCommandLine = Callable[..., Result]


def pytest_configure(config: pytest.Config) -> None:
    """A shell that starts a command in the background has it ignore Ctrl-C, and all its children; some tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the session's Ray carries its marker: `pytest -m "not ray"` runs without a cluster.

    Where tests run in several processes, all of these run in one, so that there is one Ray; others stay together by file.
    """
    for item in items:
        uses_ray = "ray_local" in getattr(item, "fixturenames", ())
        if uses_ray:
            item.add_marker(pytest.mark.ray)
        item.add_marker(pytest.mark.xdist_group("ray" if uses_ray else item.path.name))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small real data beside the checkout."""
    folder = CHECKOUT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is absent: this test needs real data")
    return folder


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One Ray with two CPUs for every test of the session."""
    # Unix sockets live below this folder, and their path has at most 107 characters: pytest's own folders are too deep.
    temp = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        # Ray listens beyond loopback, so it gets a token; one from the environment is not written into the user's home.
        # RAY_AUTH_MODE stays unset: Ray turns tokens on for a local cluster, also in this process, which may have
        # imported (and configured) Ray long ago.
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray  # only the tests that need it pay for the import

        try:
            ray.init(
                address="local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=300_000_000,
                _temp_dir=str(temp),
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread: many short operations, in tests that run side by side, would wait for each other's threads at each."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clean_environment(home: Path) -> dict[str, str]:
    """This process' environment without Ray's variables, in a home of its own: a token in ~/.ray changes Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0", "COLUMNS": "120"}


@pytest.fixture
def cli_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """`clean_environment` for one test; for `subprocess.Popen`, where `cli` is too little."""
    return clean_environment(tmp_path_factory.mktemp("home"))


@pytest.fixture
def cli(cli_environment: dict[str, str], tmp_path: Path) -> CommandLine:
    """`cli("sample", "corpus", "--json")` runs `sightline sample corpus --json` in the test's own folder.

    Keywords: `timeout_s` (120), `cwd` (tmp_path), `env` (added to the environment). Exit status, stdout and stderr come
    back; nothing is checked.
    """

    def run(
        *arguments: object, timeout_s: float = 120, cwd: Path = tmp_path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "sightline", *map(str, arguments)],
            cwd=cwd,
            env=cli_environment | dict(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    return run


@pytest.fixture
def cli_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InlineCommandLine:
    """The same command line in this process, for what ends before any work: it imports torch once, not once a case.

    `exit_code`, `stdout` and `stderr` come back; whatever would be a traceback is raised.
    """

    def run(*arguments: object) -> Result:
        from sightline.cli import app

        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(app, [*map(str, arguments)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run
