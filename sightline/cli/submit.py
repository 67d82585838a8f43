"""`sightline submit`: any other verb, as a job on a Ray cluster."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline import settings
from sightline.cli import output
from sightline.cli.output import Json

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from sightline.infra.submit import Server


def submit(
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- VERB ...", help="What to run: a verb with its arguments.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="The job server's URL. [default: RAY_ADDRESS, else a local Ray that ends with the job]"),
    ] = None,
    status: Annotated[str | None, typer.Option(metavar="JOB", help="Say how a job is doing.")] = None,
    logs: Annotated[str | None, typer.Option(metavar="JOB", help="Follow a job's log until it ends.")] = None,
    stop: Annotated[str | None, typer.Option(metavar="JOB", help="Stop a job.")] = None,
    json: Json = False,
) -> None:
    """Run any of these commands as a job on a Ray cluster.

    Sightline itself goes along as a built wheel, recorded by its sha256; nothing else does: paths are the cluster's (with
    a local Ray, relative to this folder). The job's log is shown on standard error, and the command ends with the job's
    exit status. Ctrl-C leaves a cluster's job running; with a local Ray it stops the job.

    \b
    Example:
      sightline submit -- train clip_demo corpus=corpus --workers 2
      sightline submit --address http://HEAD:8265 -- train clip_vit_b32 corpus=/data/corpus --workers 8 --gpus
      sightline submit --address http://HEAD:8265 --logs raysubmit_4LamXRuQpYdSMg7J
    """
    asked = {"--status": status, "--logs": logs, "--stop": stop}
    wishes = [name for name, job_id in asked.items() if job_id is not None] + (["-- VERB"] if command else [])
    if len(wishes) != 1:
        got = f"got {' and '.join(wishes)}" if wishes else "nothing was given"
        raise ValueError(f"{got}: give one of `-- VERB ...` (VERB: {', '.join(verbs())}), --status JOB, --logs JOB and --stop JOB")
    address = address or settings.ray_address()
    if command:
        check(command)
        run(command, address, json)
    elif address is None:
        raise ValueError(f"{wishes[0]} wants the cluster's --address (or RAY_ADDRESS): a local Ray ended with its job")
    else:
        ask(wishes[0], str(asked[wishes[0]]), address, json)


def verbs() -> list[str]:
    """What can be submitted: every verb but this one."""
    from sightline.cli import VERBS

    return [verb.__name__ for verb in VERBS if verb is not submit]


def check(command: Sequence[str]) -> None:
    """Parse the command here as the job will parse it there, before anything is started; wrong options end with usage.

    Raises:
        ValueError: there is no such verb.
    """
    from sightline.cli import app

    verb, *arguments = command
    if verb not in verbs():
        raise ValueError(f"unknown verb {verb!r}; the choices are {', '.join(verbs())}")
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    group.commands[verb].make_context(f"sightline {verb}", arguments)


def run(command: Sequence[str], address: str | None, json: bool) -> None:
    """Send the job, follow it, and end as it ended."""
    from sightline.infra import submit as jobs
    from sightline.infra.package import package

    with tempfile.TemporaryDirectory(prefix="sightline-") as scratch:
        shipped = package(Path(scratch))
        with jobs.job_server(address) as server:
            job_id = jobs.send(server, command, shipped)
            tell(f"job {job_id} at {server.address}, with {shipped.name} (sha256 {shipped.sha256})")
            finish(server, watch(server, job_id), json)


def watch(server: Server, job_id: str) -> JobDetails:
    """Follow a job; Ctrl-C ends this command, and the job only where its Ray ends too."""
    from sightline.infra import submit as jobs

    try:
        return jobs.follow(server, job_id, show)
    except KeyboardInterrupt:
        if server.local:
            jobs.stop(server, job_id)
            tell(f"interrupted: job {job_id} was stopped")
        else:
            again = f"sightline submit --address {server.address}"
            tell(f"job {job_id} goes on: `{again} --logs {job_id}` follows it, `--stop {job_id}` stops it")
        raise typer.Exit(130) from None


def ask(wish: str, job_id: str, address: str, json: bool) -> None:
    """What a running cluster is asked about one job; following and stopping end as the job ended."""
    from sightline.infra import submit as jobs

    with jobs.job_server(address) as server:
        if wish == "--status":
            output.emit(outcome(server, jobs.info(server, job_id)), json)
        elif wish == "--logs":
            finish(server, watch(server, job_id), json)
        else:
            output.emit(outcome(server, jobs.stop(server, job_id)), json)


def tell(message: str) -> None:
    """A remark for the person, on standard error; its lines stay whole, as they carry what will be copied."""
    output.log.print(message, soft_wrap=True)


def show(text: str) -> None:
    """The job's output is progress to this command: as it comes, on standard error."""
    sys.stderr.write(text)
    sys.stderr.flush()


def finish(server: Server, details: JobDetails, json: bool) -> None:
    """Print how a job ended, and end likewise."""
    result = outcome(server, details)
    if details.driver_exit_code is None and details.message:
        tell(details.message)  # it never started: the log says nothing about it
    output.emit(result, json)
    raise typer.Exit(result["exit_code"] or 0)


def outcome(server: Server, details: JobDetails) -> dict[str, Any]:
    """A job as the result of this command; a running one has no exit code."""
    from sightline.infra.submit import exit_code

    return {
        "job_id": details.submission_id,
        "status": details.status.value,
        "exit_code": exit_code(details) if details.status.is_terminal() else None,
        "wheel_sha256": (details.metadata or {}).get("sightline_sha256"),
        "address": server.address,
    }
