"""`sightline serve` as a person runs it: refusals in one line, and an end without leftovers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import InlineCommandLine
from tests.serve.conftest import free_port


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["/nowhere"], "there is no model '/nowhere'; give an artifact folder"),
        (["{model}", "--replicas", "many"], "write 2, or 1:4"),
        (["{model}", "--replicas", "3:2"], "write 2, or 1:4"),
    ],
)
def test_the_command_refuses_in_one_line(
    cli_inline: InlineCommandLine, model_folder: Path, arguments: list[str], says: str
) -> None:
    done = cli_inline("serve", *(argument.format(model=model_folder) for argument in arguments))
    assert done.exit_code == 2
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("starting")]
    assert says in line


def test_the_command_serves_until_ctrl_c_and_leaves_nothing(cli_environment: dict[str, str], model_folder: Path) -> None:
    command = [sys.executable, "-m", "sightline", "serve", str(model_folder), "--port", str(free_port()), "--json"]
    # A group of its own, which gets the signal as a whole, as from a terminal.
    process = subprocess.Popen(command, env=cli_environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert "<title>Sightline</title>" in httpx.get(ready["url"]).text
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    with pytest.raises(httpx.ConnectError):
        httpx.get(ready["url"])
