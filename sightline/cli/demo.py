"""`sightline demo`: the main job, end to end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sightline import settings
from sightline.cli.output import Json, log


def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes; the same folder again goes on where it stopped.")] = Path(
        "demo"
    ),
    train: Annotated[int, typer.Option(min=40, help="Training scenes.")] = 12_000,
    test: Annotated[int, typer.Option(min=80, help="Test scenes.")] = 1_600,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; by default the recipe's.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Training processes.")] = 2,
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    json: Json = False,
) -> None:
    """Do it all on this machine: scenes, corpus, CLIP with FSDP, scores, endpoints.

    Leaves results.md (the scores) and scenes.png (scenes, the captions and masks that the model gave them) in FOLDER. On
    a terminal it then serves until Ctrl-C; otherwise it sends one request to each endpoint and prints the answers.

    \b
    Example:
      sightline demo
      sightline demo /tmp/tiny --train 400 --test 80 --steps 20 --json
    """
    from sightline.cli.serve import front_door, until_interrupted, welcome
    from sightline.serve.front_door import check_port

    check_port(host, port)
    own_ray = settings.ray_address() is None
    with front_door(own_ray):
        from sightline.cli import main_job
        from sightline.infra.session import ray_session
        from sightline.models.load import load_model
        from sightline.serve import app
        from sightline.serve.client import readable, smoke

        sizes = main_job.Demo(folder, train, test, steps, workers)
        with ray_session(settings.ray_address(), num_cpus=max(2, workers), debug=settings.debug()):
            outcome = main_job.build(sizes)
            main_job.stage("serve", "the artifact behind three endpoints")
            with app.serving(app.Options(model=str(outcome.artifact)), host, port, own_ray=own_ray) as url:
                image, labels = main_job.example(sizes)
                answers = smoke(url, image, labels)
                main_job.show(outcome, answers, {name: readable(answer) for name, answer in answers.items()}, json)
                if sys.stdout.isatty() and not json:
                    model = load_model(str(outcome.artifact))
                    log.print(welcome(url, model.name, model.revision, app.ray_address()), highlight=False)
                    log.print("serving until Ctrl-C")
                    until_interrupted()
