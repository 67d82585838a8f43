"""`sightline evaluate MODEL CORPUS`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sightline.cli.bars import stages_bar
from sightline.cli.curve import draw_curve
from sightline.cli.output import Json, emit, log, rows, shown

if TYPE_CHECKING:
    from sightline.pipelines.evaluate.evaluate import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="An artifact, an open_clip folder, or an open_clip name.")],
    corpus: Annotated[Path, typer.Argument(help="A corpus that `sightline ingest` wrote.")],
    split: Annotated[str | None, typer.Option(help="Which rows; default: test, or all where there is no such split.")] = None,
    segmentation: Annotated[bool, typer.Option("--segmentation", help="All scores of masks, on all rows that have one.")] = False,
    few_shot: Annotated[bool, typer.Option("--few-shot", help="Linear probes on a few rows a class, against zero-shot.")] = False,
    open_set: Annotated[bool, typer.Option("--open-set", help="How well images of unknown classes are told apart.")] = False,
    held_out: Annotated[
        str, typer.Option(metavar="NAME,...", help="Classes that count as held out; default: those that training did not have.")
    ] = "",
    fold: Annotated[str, typer.Option(metavar="I/N", help="Hold out the Ith of N parts of the class list (PASCAL-5i).")] = "",
    masks: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="How masks are made, such as readout=clearclip or refine_steps=0.")
    ] = None,
    shots: Annotated[str, typer.Option(metavar="N,...", help="Rows a class of --few-shot.")] = "1,2,4,8,16",
    seeds: Annotated[int, typer.Option(min=1, help="Draws for each of them.")] = 5,
    figure: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the curve of --few-shot.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    json: Json = False,
) -> None:
    """Score a model: zero-shot accuracy (seen and held-out classes), retrieval, masks; a classifier: its accuracy;
    a model that predicts captions: zero-shot accuracy and its loss.

    \b
    Example:
      sightline evaluate runs/clip_demo-0123456789ab corpora/sample
      sightline evaluate ViT-B-32/laion2b_s34b_b79k corpora/flickr8k --split test --json
      sightline evaluate runs/imagenette_finetune-0123456789ab corpora/imagenette --split val
      sightline evaluate runs/lseg_camvid-0123456789ab corpora/camvid --segmentation --held-out car,fence
      sightline evaluate ViT-B-32/laion2b_s34b_b79k corpora/imagenette --few-shot --figure curve.svg
      sightline evaluate ViT-B-32/laion2b_s34b_b79k corpora/imagenette --open-set --fold 1/2
    """
    from sightline.models import artifact
    from sightline.models.load import load_model
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.evaluate import evaluate as general
    from sightline.pipelines.evaluate import protocols

    if segmentation + few_shot + open_set > 1:
        raise ValueError("--segmentation, --few-shot and --open-set are evaluations of their own; give one of them")
    if (held_out or fold) and not (segmentation or open_set):
        raise ValueError("--held-out and --fold go with --segmentation or --open-set; give one of them, or leave them out")
    if masks and not segmentation:
        raise ValueError("--masks goes with --segmentation; give both, or leave it out")
    if figure and not few_shot:
        raise ValueError("--figure draws the curve of --few-shot; give both, or leave it out")
    opened = Corpus.open(corpus)
    folder = artifact.find(model)
    loaded = artifact.load_any(folder, device) if folder else load_model(model, device)
    names = [name.strip() for name in held_out.split(",") if name.strip()]
    with stages_bar() as progress:
        if segmentation:
            report = protocols.evaluate_segmentation(loaded, opened, split, names, fold, masks or [], progress)
        elif open_set:
            report = protocols.evaluate_open_set(loaded, opened, split, names, fold, progress)
        elif few_shot:
            found = protocols.evaluate_few_shot(loaded, opened, split, numbers(shots), seeds, progress)
            report = found.evaluation
        else:
            report = general.evaluate(loaded, opened, split, progress)
    if few_shot and figure:
        title = f"{report.model}, {int(report.metrics['classes'])} classes"
        draw_curve(title, found.points, found.everything, found.zero_shot, figure)
    log.print(f"{report.model} on {corpus} (split {report.split or 'all rows'}, root {report.corpus_root[:12]})")
    emit(asdict(report), json, scores_table(report))


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them.

    Raises:
        ValueError: the text is something else.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--shots {text!r} are no numbers; give for example 1,2,4,8,16") from None


def scores_table(report: Evaluation) -> Table:
    """Scores as percentages, losses and counts as they are."""
    lines = [
        (
            name,
            shown(int(value))
            if name.endswith(("rows", "images", "captions", "classes"))
            else f"{value:.3f}"
            if name.endswith("loss")
            else f"{100 * value:.1f} %",
        )
        for name, value in report.metrics.items()
    ]
    return rows(("metric", "value"), lines)
