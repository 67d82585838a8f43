"""`sightline train RECIPE`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline import settings
from sightline.cli.bars import training_bar
from sightline.cli.output import Json, emit, facts, log


def train(
    recipe: Annotated[str, typer.Argument(help="clip_demo, clip_small, lit_small, clip_vit_b32, ..., or module:function")],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings as key=value; corpus=PATH is needed")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Training processes: one a GPU, or a share of the CPU threads.")] = 1,
    gpus: Annotated[bool, typer.Option(help="Give each worker a GPU (NCCL, bf16).")] = False,
    runs: Annotated[Path, typer.Option(help="Where runs live; every worker must see this folder.")] = Path("runs"),
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Pairs that a worker's towers take together; more go in parts.")
    ] = None,
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp", "hsdp"], typer.Option(help="How weights lie on the workers; auto goes by memory.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run would be: parameters, memory, arithmetic.")
    ] = False,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; without it a local Ray is started.")] = None,
    json: Json = False,
) -> None:
    """Train a recipe on a corpus, to one artifact.

    The same command again goes on from the last checkpoint, or returns the finished artifact. The numbers are the
    same for any number of workers. The run is named by a hash of everything that affects them.

    \b
    Example:
      sightline train clip_demo corpus=corpora/sample --workers 2
      sightline train clip_vit_b16 corpus=corpora/photos global_batch=4096 --workers 8 --gpus --dry-run
      sightline train clip_small corpus=corpora/photos filters=big,nodup
      sightline train lit_small corpus=corpora/flickr8k model.pretrained_image=deit_tiny.safetensors
      sightline train clip_vit_b32 corpus=/data/pairs steps=100000 global_batch=16384 --workers 32 --gpus --runs /data/runs
    """
    from sightline.infra.session import available_cpus, check_workers, ray_session
    from sightline.pipelines.train import job
    from sightline.pipelines.train.spec import Launch, prepare
    from sightline.recipes import find_recipe

    spec = prepare(find_recipe(recipe), overrides or [], gpus=gpus)
    if dry_run:
        from sightline.pipelines.train.dry_run import plan_run

        plan = asdict(plan_run(spec, workers))
        emit(plan, json, facts(plan))
        return
    log.print(f"run {spec.recipe}-{spec.run_id}: {spec.steps:,} steps of {spec.global_batch:,}, {spec.precision}")
    address = address or settings.ray_address()
    with ray_session(address, debug=settings.debug()):
        if address is None:
            check_workers(workers, gpus=gpus)
        launch = Launch(
            run_dir=runs.resolve() / f"{spec.recipe}-{spec.run_id}",
            workers=workers,
            threads=max(1, available_cpus() // workers),
            checkpoint_every=checkpoint_every,
            gpus=gpus,
            at_once=at_once,
            strategy=strategy,
        )
        with training_bar(spec.steps) as show:
            report = job.run(spec, launch, show, log.print)
    result = asdict(report) | {"artifact": str(report.artifact)}
    emit(result, json, facts(result))
