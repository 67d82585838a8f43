"""The main job, end to end on one local Ray: scenes → corpus → CLIP → scores → endpoints, with a table and a picture to keep.

Each stage is the command of the same name, and resumes as that command does: interrupted anywhere, the same demo goes on.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.cli.bars import stages_bar, training_bar
from sightline.cli.evaluate import scores_table
from sightline.cli.ingest import bar as ingest_bar
from sightline.cli.output import emit, log, rows
from sightline.models.clip import Clip
from sightline.models.codec import decode_rgb
from sightline.models.load import load_model
from sightline.models.segment import BACKGROUND, segment
from sightline.picture import Panel, draw
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


def build(demo: Demo, debug: bool) -> Outcome:
    """Sample, ingest, train and evaluate on the Ray that is connected; write the table and the picture.

    Raises:
        ValueError, OSError: a size or the folder cannot be used; the message says what to change.
    """
    from sightline.infra.session import available_cpus
    from sightline.pipelines.ingest import job as ingest_job
    from sightline.pipelines.train import job as train_job

    seconds: dict[str, float] = {}
    clock = Stages(seconds)
    source, corpus_folder = demo.folder / "scenes", demo.folder / "corpus"

    clock.begin("sample", "drawing scenes of coloured digits")
    with stages_bar() as progress:
        spec = SampleSpec(train=demo.train, val=demo.train // 20, test=demo.test)
        sample = write_sample(source, spec, lambda done, total: progress("scenes", done, total))
    log.print(f"  {spec.scenes:,} scenes; never in training: {', '.join(sample.held_out)}")

    clock.begin("ingest", "images and captions become an Arrow corpus")
    with ingest_bar() as show:
        report = ingest_job.ingest(source, corpus_folder, progress=show)
    log.print(f"  {report.kept:,} kept + {report.errors} errors = {report.seen:,} seen, root {report.root[:12]}")

    clock.begin("train", f"CLIP with FSDP on {demo.workers} Ray Train workers")
    overrides = [f"corpus={corpus_folder}", *([] if demo.steps is None else [f"steps={demo.steps}"])]
    run = prepare(find_recipe("clip_demo"), overrides, gpus=False)
    launch = Launch(
        run_dir=demo.folder.resolve() / "runs" / f"{run.recipe}-{run.run_id}",
        workers=demo.workers,
        threads=max(1, available_cpus() // demo.workers),
    )
    with training_bar(run.steps) as show_step:
        trained = train_job.run(run, launch, show_step)
    log.print(f"  {trained.steps:,} steps, loss {trained.final_loss:.3f}: {trained.artifact}")

    clock.begin("evaluate", "scores on scenes and combinations that training never saw")
    model, corpus = load_model(str(trained.artifact)), Corpus.open(corpus_folder)
    with stages_bar() as progress:
        evaluation = evaluate(model, corpus, progress=progress)
        picture = demo.folder / "scenes.png"
        draw(panels(model, corpus), picture)
    clock.end()
    (demo.folder / "results.md").write_text(as_markdown(evaluation, seconds))
    return Outcome(trained.artifact, picture, evaluation, seconds)


class Stages:
    """Announces stages and keeps how long each took."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._name, self._began = seconds, "", 0.0

    def begin(self, name: str, what: str) -> None:
        self.end()
        self._name, self._began = name, time.monotonic()
        log.print(f"[bold]{name}[/bold]  {what}")

    def end(self) -> None:
        if self._name:
            self._seconds[self._name] = round(time.monotonic() - self._began, 1)
            self._name = ""


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
        rgb, caption = decode_rgb(corpus.image(row)), captions[best]
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


def show(outcome: Outcome, answers: dict[str, object], as_json: bool) -> None:
    """Print what the demo came to: for a person, or as one line of JSON."""
    result = {
        "artifact": str(outcome.artifact),
        "picture": str(outcome.picture),
        "metrics": outcome.evaluation.metrics,
        "seconds": outcome.seconds,
        "answers": answers,
    }
    times = rows(("stage", "seconds"), [(name, f"{value:.1f}") for name, value in outcome.seconds.items()])
    emit(result, as_json, scores_table(outcome.evaluation), times, f"picture: {outcome.picture}")
