"""The main job, end to end on one local Ray: scenes → corpus → CLIP → scores → endpoints, with a table and a picture to keep.

Each stage is the command of the same name, and resumes as that command does: interrupted anywhere, the same demo goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape

from sightline.cli.bars import ingest_bar, stages_bar, training_bar
from sightline.cli.evaluate import scores_table
from sightline.cli.output import emit, log, rows
from sightline.cli.picture import Panel, draw
from sightline.models.clip import Clip
from sightline.models.codec import decode_rgb
from sightline.models.load import load_model
from sightline.models.segment import segment
from sightline.models.zeroshot import BACKGROUND
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import Evaluation, embed_rows, evaluate
from sightline.pipelines.sample.spec import SampleSpec
from sightline.pipelines.sample.write import write_sample
from sightline.pipelines.train.spec import Launch, prepare
from sightline.recipes import find_recipe

PANELS = 16


@dataclass(frozen=True)
class Demo:
    """Sizes of the demo.

    Attributes:
        folder: everything the demo writes lies below it.
        train, test: scenes; validation gets a twentieth of the training scenes.
        steps: training steps; None: the recipe's.
        workers: training processes.
    """

    folder: Path
    train: int
    test: int
    steps: int | None
    workers: int


@dataclass(frozen=True)
class Outcome:
    """What the demo came to before serving. `seconds` is by stage."""

    artifact: Path
    picture: Path
    evaluation: Evaluation
    seconds: dict[str, float]


def build(demo: Demo) -> Outcome:
    """Sample, ingest, train and evaluate on the Ray that is connected; write the table and the picture.

    Raises:
        ValueError, OSError: a size or the folder cannot be used; the message says what to change.
    """
    from sightline.infra.session import available_cpus
    from sightline.pipelines.ingest import job as ingest_job
    from sightline.pipelines.train import job as train_job

    seconds: dict[str, float] = {}
    source, corpus_folder = demo.folder / "scenes", demo.folder / "corpus"

    with timed("sample", seconds), stages_bar() as progress:
        stage("sample", "drawing scenes of coloured, handwritten digits")
        spec = SampleSpec(train=demo.train, val=demo.train // 20, test=demo.test)
        sample = write_sample(source, spec, lambda done, total: progress("scenes", done, total))
        log.print(f"  {spec.scenes:,} scenes; never in training: {', '.join(sample.held_out)}")

    with timed("ingest", seconds):
        stage("ingest", "images and captions become an Arrow corpus")
        with ingest_bar() as show_shards:
            report = ingest_job.ingest(source, corpus_folder, progress=show_shards)
        log.print(f"  {report.seen:,} seen = {report.kept:,} kept + {report.filtered} filtered + {report.errors} errors")
        log.print(f"  root {report.root[:12]}")

    with timed("train", seconds):
        stage("train", f"CLIP with FSDP on {demo.workers} Ray Train workers")
        overrides = [f"corpus={corpus_folder}", *([] if demo.steps is None else [f"steps={demo.steps}"])]
        run = prepare(find_recipe("clip_demo"), overrides, gpus=False)
        launch = Launch(
            run_dir=demo.folder.resolve() / "runs" / f"{run.recipe}-{run.run_id}",
            workers=demo.workers,
            threads=max(1, available_cpus() // demo.workers),
            strategy="fsdp",  # so small a model would not need it
        )
        with training_bar(run.steps) as show_step:
            trained = train_job.run(run, launch, show_step)
        log.print(f"  {trained.steps:,} steps, loss {trained.final_loss:.3f}")

    with timed("evaluate", seconds):
        stage("evaluate", "scores on scenes and combinations that training never saw")
        model, corpus = load_model(str(trained.artifact)), Corpus.open(corpus_folder)
        with stages_bar() as progress:
            evaluation = evaluate(model, corpus, progress=progress)
        picture = demo.folder / "scenes.png"
        draw(panels(model, corpus), picture)
    (demo.folder / "results.md").write_text(as_markdown(evaluation, seconds))
    return Outcome(trained.artifact, picture, evaluation, seconds)


def stage(name: str, what: str) -> None:
    """Announce a stage."""
    log.print(f"[bold]{name}[/bold]  {what}")


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Keep how long a stage took."""
    began = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - began, 1)


def example(demo: Demo) -> tuple[bytes, list[str]]:
    """A test scene with several digits, and labels to ask of it: its own and one that is not there."""
    corpus = Corpus.open(demo.folder / "corpus")
    labels = corpus.sidecar(["labels"])["labels"].to_pylist()
    row = next(int(row) for row in corpus.select("test") if len(labels[row]) > 1)
    own = [corpus.classes[number] for number in labels[row]]
    other = next(name for name in corpus.classes if name not in (*own, BACKGROUND))
    return bytes(corpus.image(row)), [*own, other]


def panels(model: Clip, corpus: Corpus) -> list[Panel]:
    """Test scenes in turn with one and with several digits: the nearest caption of the test split, and its labels' masks."""
    test = corpus.select("test")
    counts = np.array([len(labels) for labels in corpus.sidecar(["labels"])["labels"].take(test).to_pylist()])
    single, several = test[counts == 1][: PANELS // 2], test[counts > 1][: PANELS // 2]
    chosen = np.array([row for pair in zip(single, several, strict=False) for row in pair], dtype=np.int64)
    captions = sorted({caption for row in test for caption in corpus.captions(int(row))})
    text_MD = model.embed_texts(captions)
    image_ND = embed_rows(model, corpus, chosen, lambda what, done, total: None)
    names = [name for name in corpus.classes if name and name != BACKGROUND]
    drawn = []
    for row, best in zip(chosen.tolist(), (image_ND @ text_MD.cpu().T).argmax(1).tolist(), strict=True):
        rgb, caption = decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels), captions[best]
        said = [name for name in names if name in caption]
        mask = segment(model, rgb, said).label_map_HW if said else np.zeros(rgb.shape[:2], np.uint8)
        true = {corpus.classes[number] for number in corpus.row(row).labels}
        drawn.append(Panel(rgb, caption, set(said) == true, mask))
    return drawn


def as_markdown(evaluation: Evaluation, seconds: dict[str, float]) -> str:
    """The results table that stays behind."""
    scores = [f"| {name} | {value:.4g} |" for name, value in evaluation.metrics.items()]
    times = [f"| {name} | {value} s |" for name, value in seconds.items()]
    head = f"# {evaluation.model}\n\ncorpus root `{evaluation.corpus_root}`, weights `{evaluation.revision}`\n"
    return "\n".join([head, "| metric | value |", "| --- | --- |", *scores, "", "| stage | time |", "| --- | --- |", *times, ""])


def show(outcome: Outcome, answers: dict[str, object], readable: dict[str, str], as_json: bool) -> None:
    """Print what the demo came to: for a person, or as one line of JSON."""
    result = {
        "artifact": str(outcome.artifact),
        "picture": str(outcome.picture),
        "metrics": outcome.evaluation.metrics,
        "seconds": outcome.seconds,
        "answers": answers,
    }
    shown = [escape(f"POST /v1/{name}\n{answer}\n") for name, answer in readable.items()]
    times = rows(("stage", "seconds"), [(name, f"{value:.1f}") for name, value in outcome.seconds.items()])
    emit(result, as_json, *shown, scores_table(outcome.evaluation), times, f"picture: {outcome.picture}")
