"""Jobs: what is sent, what is shown and how it ends; at the end on real job servers."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sightline.cli.submit import check, verbs
from tests.conftest import clean_environment

Cli = Callable[..., subprocess.CompletedProcess[str]]

# ---- what a person gets wrong, before anything is started ----


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refused command."""
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    return line


def test_an_unknown_verb_names_the_choices(cli: Cli) -> None:
    line = refusal(cli("submit", "--", "trian", "clip_demo"))
    assert line == f"sightline submit: unknown verb 'trian'; the choices are {', '.join(verbs())}"


def test_submit_itself_is_no_choice() -> None:
    assert "submit" not in verbs() and {"train", "ingest", "serve"} <= set(verbs())
    with pytest.raises(ValueError, match="unknown verb 'submit'"):
        check(["submit", "--", "train"])


def test_an_unknown_option_of_the_verb_is_found_here(cli: Cli) -> None:
    done = cli("submit", "--", "sample", "corpus", "--trian", "8")
    assert done.returncode == 2
    assert "No such option: --trian" in done.stderr and "Usage: sightline sample" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "nothing was given: give one of `-- VERB ...`"),
        (("--status", "a", "--stop", "b"), "got --status and --stop: give one of"),
        (("--logs", "a", "--", "train"), "got --logs and -- VERB: give one of"),
        (("--status", "a"), "--status wants the cluster's --address (or RAY_ADDRESS)"),
        (("--address", "localhost:8265", "--status", "a"), "is no job server's address: give its URL"),
        (("--address", "http://127.0.0.1:9", "--status", "a"), "no Ray job server answers at http://127.0.0.1:9"),
        (("--address", "http://127.0.0.1:9", "--", "sample", "x"), "no Ray job server answers at http://127.0.0.1:9"),
        (("--address", "http://[", "--status", "a"), "no Ray job server answers at http://["),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(cli: Cli, arguments: tuple[str, ...], words: str) -> None:
    assert words in refusal(cli("submit", *arguments))


def test_the_address_given_beats_the_one_in_the_environment(cli: Cli) -> None:
    done = cli("submit", "--address", "http://127.0.0.1:9", "--status", "a", env={"RAY_ADDRESS": "http://127.0.0.1:11"})
    assert "http://127.0.0.1:9:" in refusal(done)
    assert "http://127.0.0.1:11:" in refusal(cli("submit", "--status", "a", env={"RAY_ADDRESS": "http://127.0.0.1:11"}))


# ---- what is sent, shown and returned, against a server made of a few lines ----


class FakeClient:
    """A job server's client whose connections end as the test says."""

    def __init__(self, *connections: list[str | Exception], statuses: list[str]) -> None:
        self.connections, self.statuses = list(connections), list(statuses)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for text in self.connections.pop(0):
            if isinstance(text, Exception):
                raise text
            yield text

    def get_job_info(self, job_id: str) -> Any:
        from ray.job_submission import JobStatus

        return SimpleNamespace(status=JobStatus(self.statuses.pop(0)), driver_exit_code=None)


def server(client: FakeClient) -> Any:
    from sightline.infra.submit import Server

    return Server(cast(Any, client), "http://head:8265", local=False)


def test_a_log_is_shown_once_however_often_the_connection_breaks() -> None:
    from sightline.infra.submit import follow

    broken = RuntimeError("WebSocket connection closed unexpectedly")
    client = FakeClient(
        ["one\n", "two\n", broken],
        [ConnectionError("refused")],
        ["one\ntw", "o\nthree\n"],
        statuses=["RUNNING", "SUCCEEDED"],
    )
    written: list[str] = []
    assert follow(server(client), "job", written.append).status == "SUCCEEDED"
    assert "".join(written) == "one\ntwo\nthree\n"


def test_a_job_that_runs_on_after_its_log_ended_is_followed_again() -> None:
    from sightline.infra.submit import follow

    client = FakeClient(["a"], ["a", "b"], statuses=["RUNNING", "RUNNING", "FAILED"])
    written: list[str] = []
    assert follow(server(client), "job", written.append).status == "FAILED"
    assert "".join(written) == "ab"


def test_a_server_that_stays_away_is_given_up_with_the_jobs_last_status(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.infra import submit

    monkeypatch.setattr(submit, "LOST_CONTACT_S", 0)
    client = FakeClient(*[[ConnectionError("refused")]] * 3, statuses=["RUNNING"])
    with pytest.raises(ConnectionError, match="lost contact with http://head:8265; job j was RUNNING and may go on"):
        submit.follow(server(client), "j", print)


def test_ctrl_c_stops_a_job_whose_ray_ends_with_this_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    from sightline.cli.submit import watch
    from sightline.infra import submit

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stopped: list[str] = []
    monkeypatch.setattr(submit, "follow", interrupted)
    monkeypatch.setattr(submit, "stop", lambda _, job_id: stopped.append(job_id))
    local = submit.Server(cast(Any, None), "http://127.0.0.1:8265", local=True)
    with pytest.raises(typer.Exit) as ended:
        watch(local, "job")
    assert ended.value.exit_code == 130 and stopped == ["job"]
    assert "interrupted: job job was stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("FAILED", None, 1), ("STOPPED", None, 1)],
)
def test_a_job_ends_this_command_with_its_own_status(status: str, driver: int | None, code: int) -> None:
    from ray.job_submission import JobStatus

    from sightline.infra.submit import exit_code

    details = SimpleNamespace(status=JobStatus(status), driver_exit_code=driver)
    assert exit_code(cast(Any, details)) == code


def test_the_shell_gets_the_words_as_they_were_given() -> None:
    from sightline.infra.submit import entrypoint

    command = ["ingest", "a folder/$HOME", "it's"]
    remote = shlex.split(entrypoint(command, None))
    assert remote == ["exec", "python", "-P", "-m", "sightline", *command]
    local = shlex.split(entrypoint(command, Path("/tmp/a b")))
    assert local == ["cd", "/tmp/a b", "&&", "exec", sys.executable, "-P", "-m", "sightline", *command]


# ---- real job servers ----


def test_without_an_address_a_local_ray_runs_the_job_in_this_folder_though_another_runs_on_this_machine(
    cli: Cli, tmp_path: Path, ray_local: None
) -> None:
    sample = ("sample", "my corpus", "--train", 8, "--val", 2, "--test", 8, "--json")
    done = cli("submit", "--json", "--", *sample, timeout_s=150)
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    result = json.loads(line)
    assert result["status"] == "SUCCEEDED" and result["exit_code"] == 0
    assert set(result) == {"job_id", "status", "exit_code", "wheel_sha256", "address"}
    assert f"job {result['job_id']} at {result['address']}" in done.stderr
    assert f"sha256 {result['wheel_sha256']}" in done.stderr
    of_the_job = json.loads(done.stderr.splitlines()[-1])  # its own --json is the end of its log
    assert of_the_job["train"] == 8 and Path(of_the_job["dest"]) == tmp_path / "my corpus"
    assert any((tmp_path / "my corpus").iterdir())


# Starts a local Ray and a job that waits, says where they are, and ends both when its standard input closes.
JOB_SERVER = """
import signal, sys
from sightline.infra.submit import job_server
with job_server(None) as server:
    waiting = server.client.submit_job(entrypoint="echo it began; exec sleep 600")
    signal.signal(signal.SIGINT, lambda *_: None)
    print(server.address, waiting, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def job_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A Ray with a job server: its address, a job that waits on it, and the variables that let a command in."""
    home = tmp_path_factory.mktemp("home")
    environment = clean_environment(home) | {"SIGHTLINE_DEBUG": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", JOB_SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdin and process.stdout
        try:
            address, waiting = process.stdout.readline().split()
            # As a terminal's Ctrl-C does: every process of Ray gets it, and all that follows needs the job server whole.
            os.killpg(process.pid, signal.SIGINT)
            token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(home / ".ray" / "auth_token")}
            yield SimpleNamespace(address=address, waiting=waiting, token=token)
        finally:
            process.stdin.close()
            process.wait(60)


def test_a_cluster_that_wants_a_token_says_so(cli: Cli, job_server: SimpleNamespace) -> None:
    line = refusal(cli("submit", "--address", job_server.address, "--status", job_server.waiting))
    assert "wants a valid token: set RAY_AUTH_MODE=token" in line


def test_an_unknown_job_names_those_there_are(cli: Cli, job_server: SimpleNamespace) -> None:
    line = refusal(cli("submit", "--address", job_server.address, "--status", "nope", env=job_server.token))
    assert "no job 'nope'" in line and job_server.waiting in line


def test_a_failing_command_ends_with_its_own_status_and_ran_from_what_was_shipped(cli: Cli, job_server: SimpleNamespace) -> None:
    done = cli(
        "submit",
        "--json",
        "--",
        "ingest",
        "/no/such/folder",
        "/no/corpus",
        env=job_server.token | {"RAY_ADDRESS": job_server.address},
    )
    result = json.loads(done.stdout)
    assert done.returncode == result["exit_code"] != 0, done.stderr
    assert result["status"] == "FAILED" and result["address"] == job_server.address
    assert "/no/such/folder" in done.stderr
    assert "/py_modules_files/" in done.stderr, "the traceback leads into the package that Ray unpacked"


def test_ctrl_c_leaves_a_clusters_job_running_until_it_is_stopped(
    cli: Cli, cli_environment: dict[str, str], job_server: SimpleNamespace
) -> None:
    at = ("submit", "--address", job_server.address)
    command = [sys.executable, "-m", "sightline", *at, "--logs", job_server.waiting]
    environment = cli_environment | job_server.token
    follower = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert follower.stderr
        while "it began" not in (line := follower.stderr.readline()):
            assert line, "the log's first line did not come"
        follower.send_signal(signal.SIGINT)
        _, remark = follower.communicate(timeout=30)
        assert follower.returncode == 130
    finally:
        follower.kill()
        follower.wait()
    assert f"sightline submit --address {job_server.address} --logs {job_server.waiting}" in remark
    status = cli(*at, "--status", job_server.waiting, "--json", env=job_server.token)
    assert json.loads(status.stdout)["status"] == "RUNNING" and json.loads(status.stdout)["exit_code"] is None
    stopped = cli(*at, "--stop", job_server.waiting, "--json", env=job_server.token)
    assert json.loads(stopped.stdout)["status"] == "STOPPED" and stopped.returncode == 0
    followed = cli(*at, "--logs", job_server.waiting, "--json", env=job_server.token)
    assert followed.returncode == 1 and "it began" in followed.stderr
