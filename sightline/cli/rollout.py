"""`sightline rollout [MODEL]`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline import settings
from sightline.cli.output import Json, emit, rows

if TYPE_CHECKING:
    from sightline.serve.rollout import Plan, Report


def rollout(
    model: Annotated[str | None, typer.Argument(help="What shall be served; none: say what is.")] = None,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Its part of the requests; 1 replaces what is served.")] = 1.0,
    back: Annotated[bool, typer.Option("--back", help="Return to what was served before the last rollout.")] = False,
    within: Annotated[float, typer.Option(min=1, help="Seconds in which all replicas must have loaded it.")] = 600,
    address: Annotated[
        str, typer.Option(help="The Ray that serves, as `sightline serve` names it; auto: the last on this machine.")
    ] = "auto",
    json: Json = False,
) -> None:
    """Change the model that a running `sightline serve` answers with, all of it or a part, without dropping a request.

    Each replica loads the model beside the one that it serves and lets it prove itself; where one refuses, nothing changes.

    \b
    Example:
      sightline rollout runs/clip_demo-5e6f7a8b --share 0.1
      sightline rollout runs/clip_demo-5e6f7a8b
      sightline rollout --back
    """
    if model is not None and back:
        raise ValueError("give a model or --back, not both")
    # A local Ray asks for the token that it left in the user's home; Ray takes that up only if it is told to before its import.
    if (Path.home() / ".ray" / "auth_token").is_file():
        settings.default({"RAY_AUTH_MODE": "token"})
    from sightline.infra.session import ray_session
    from sightline.serve import app
    from sightline.serve.rollout import Rollouts
    from sightline.serve.served import load

    with ray_session(settings.ray_address() or address, debug=settings.debug()):
        rollouts = Rollouts(app.GcsBoard())
        plan = rollouts.plan()
        if plan is None:
            raise ValueError("nothing is served on this Ray; start `sightline serve MODEL` first, or name its Ray by --address")
        if back:
            rollouts.carry_out(plan.back(), within)
        elif model is not None:
            name = str(Path(model).resolve()) if Path(model).exists() else model
            # A model that does not prove itself here would not do so on the replicas.
            rollouts.carry_out(plan.changed(name, load(name, "float32").artifact, share), within)
        plan = rollouts.plan()
        assert plan is not None
        show(plan, rollouts.reports(), json)


def show(plan: Plan, reports: dict[str, Report], as_json: bool) -> None:
    """What is served, and whether all replicas do."""
    done = sum(report.version == plan.version and not report.error for report in reports.values())
    result = {
        "version": plan.version,
        "served": [{"model": part.model, "artifact": part.artifact, "share": part.part} for part in plan.parts],
        "replicas": len(reports),
        "in_line": done,
        "refused": {name: report.error for name, report in reports.items() if report.error},
    }
    lines = [(part.model, part.artifact[:12], f"{part.part:.1%}") for part in plan.parts]
    emit(result, as_json, rows(("model", "artifact", "share"), lines), f"{done} of {len(reports)} replicas serve it")
