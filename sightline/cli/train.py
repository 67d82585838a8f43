"""`sightline train RECIPE`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sightline import settings
from sightline.cli.bars import training_bar
from sightline.cli.output import Json, emit, facts, log

if TYPE_CHECKING:
    from sightline.pipelines.train.report import TrainReport
    from sightline.pipelines.train.spec import Launch, RunSpec


def train(
    recipe: Annotated[str, typer.Argument(help="clip_demo, clip_small, lit_small, clip_vit_b32, ..., or module:function")],
    overrides: Annotated[list[str] | None, typer.Argument(help="settings as key=value; corpus=PATH is needed")] = None,
    workers: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="Training processes: one a GPU, or a share of the CPU threads.")
    ] = "1",
    gpus: Annotated[bool, typer.Option(help="Give each worker a GPU (NCCL, bf16).")] = False,
    runs: Annotated[Path, typer.Option(help="Where runs live; every worker must see this folder.")] = Path("runs"),
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    checkpoints: Annotated[
        str, typer.Option(help="Where checkpoints go, a folder for each run: a path, or a URL (s3://...).")
    ] = "",
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest checkpoints stay.")] = 2,
    evaluate: Annotated[str, typer.Option(metavar="SPLIT", help="Evaluate each checkpoint on it beside the training.")] = "",
    keep_best: Annotated[str, typer.Option(metavar="METRIC", help="The checkpoint with most of it stays too.")] = "",
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Samples that a worker's towers take together; more go in parts.")
    ] = None,
    feed_actors: Annotated[
        int, typer.Option(min=0, help="Ray actors, on CPUs of their own, that decode for each worker; 0: its own threads.")
    ] = 0,
    recompute: Annotated[bool, typer.Option(help="Compute activations again instead of keeping them: less memory.")] = False,
    strategy: Annotated[
        Literal["auto", "ddp", "fsdp", "hsdp"], typer.Option(help="How weights lie on the workers; auto goes by memory.")
    ] = "auto",
    track: Annotated[
        list[str] | None, typer.Option(help="tensorboard (the default), wandb, mlflow, none; may be given several times.")
    ] = None,
    profile: Annotated[str, typer.Option(metavar="FIRST:LAST", help="Trace these steps with torch's profiler.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the run would be: parameters, memory, arithmetic.")
    ] = False,
    without_ray: Annotated[
        bool, typer.Option("--without-ray", help="Train in this process; under torchrun that is the default.")
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
      sightline train clip_small corpus=corpora/photos --evaluate val --keep-best image_to_text_recall@10
      sightline train lit_small corpus=corpora/flickr8k model.pretrained_image=deit_tiny.safetensors
      sightline train lseg_camvid corpus=corpora/camvid model.pretrained_image=deit_tiny.safetensors held_out=car,fence
      sightline train clip_vit_b32 corpus=/data/pairs steps=100000 global_batch=16384 --workers 16:32 --gpus --runs /data/runs
      torchrun --nproc-per-node 2 -m sightline train clip_small corpus=corpora/photos
    """
    from torch.distributed import is_torchelastic_launched

    from sightline.pipelines.train.spec import Launch, prepare
    from sightline.recipes import find_recipe

    fewest, most = bounds(workers, "--workers", "2, or 2:8 for as many as there is room for")
    spec = prepare(find_recipe(recipe), overrides or [], gpus=gpus)
    if dry_run:
        from sightline.pipelines.train.dry_run import plan_run

        plan = asdict(plan_run(spec, most))
        emit(plan, json, facts(plan))
        return
    launch = Launch(
        run_dir=runs.resolve() / f"{spec.recipe}-{spec.run_id}",
        workers=most,
        min_workers=fewest if fewest < most else None,
        checkpoint_every=checkpoint_every,
        checkpoints=checkpoints if "://" in checkpoints or not checkpoints else str(Path(checkpoints).resolve()),
        keep=keep,
        evaluate=evaluate,
        keep_best=keep_best,
        gpus=gpus,
        at_once=at_once,
        feed_actors=feed_actors,
        recompute=recompute,
        strategy=strategy,
        profile=bounds(profile, "--profile", "10:12") if profile else None,
        track=trackers(track),
    )
    if without_ray or is_torchelastic_launched():
        report = train_without_ray(spec, launch)
        if report is None:  # another rank speaks
            return
    else:
        report = train_on_ray(spec, launch, address)
    result = asdict(report) | {"artifact": str(report.artifact)}
    emit(result, json, facts(result))


def train_on_ray(spec: RunSpec, launch: Launch, address: str | None) -> TrainReport:
    from sightline.infra.session import available_cpus, check_workers, ray_session
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.train import job

    if launch.keep_best and not launch.evaluate:
        raise ValueError("--keep-best needs --evaluate SPLIT, which gives each checkpoint its metrics")
    if launch.evaluate:
        Corpus.open(spec.data.corpus, spec.data.root).select(launch.evaluate)  # says so where there is no such split
    log.print(f"run {launch.run_dir.name}: {spec.steps:,} steps of {spec.global_batch:,}, {spec.precision}")
    address = address or settings.ray_address()
    with ray_session(address, debug=settings.debug()):
        if address is None:
            check_workers(launch.workers, gpus=launch.gpus)
        spare = (1 if launch.evaluate else 0) + launch.workers * launch.feed_actors  # beside the workers
        threads = max(1, (available_cpus() - spare) // launch.workers)
        with training_bar(spec.steps) as show:
            return job.run(spec, replace(launch, threads=threads), show, log.print)


def train_without_ray(spec: RunSpec, launch: Launch) -> TrainReport | None:
    import torch

    from sightline.pipelines.train import alone

    if launch.min_workers is not None or launch.workers > 1:
        raise ValueError(
            "--workers is for Ray; without it start the processes by torchrun --nproc-per-node N -m sightline train ..."
        )
    if launch.evaluate or launch.keep_best:
        raise ValueError("--evaluate and --keep-best need Ray, which evaluates beside the training; leave them out")
    if launch.feed_actors:
        raise ValueError("--feed-actors are Ray's; without Ray each process decodes in its own threads: leave it out")
    launch = replace(launch, threads=torch.get_num_threads())
    if settings.torchrun_rank():  # rank 0 speaks
        return alone.run(spec, launch)
    with training_bar(spec.steps) as show:
        return alone.run(spec, launch, show, log.print)


def bounds(text: str, option: str, example: str) -> tuple[int, int]:
    """A number, or two with a colon between them, the first not above the second.

    Raises:
        ValueError: the text is neither.
    """
    first, _, last = text.partition(":")
    try:
        low, high = int(first), int(last or first)
    except ValueError:
        low, high = 0, 0
    if not 1 <= low <= high:
        raise ValueError(f"{option} {text!r} is no range; give for example {example}")
    return low, high


def trackers(names: list[str] | None) -> tuple[Literal["tensorboard", "wandb", "mlflow"], ...]:
    """The trackers to use; TensorBoard where nothing is said.

    Raises:
        ValueError: one of them is not known, or not installed.
    """
    from importlib.util import find_spec

    modules: dict[str, Literal["tensorboard", "wandb", "mlflow"]] = {
        "tensorboard": "tensorboard",
        "wandb": "wandb",
        "mlflow": "mlflow",
    }
    found = []
    for name in names or ["tensorboard"]:
        if name == "none":
            continue
        if name not in modules:
            raise ValueError(f"there is no tracker {name!r}; give {', '.join(modules)} or none")
        if find_spec("tensorboardX" if name == "tensorboard" else name) is None:
            raise ValueError(f'{name} is not installed; run pip install "sightline[{name}]", or leave out --track {name}')
        found.append(modules[name])
    return tuple(found)
