"""`sightline evaluate MODEL CORPUS`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from sightline.cli.bars import stages_bar
from sightline.cli.output import Json, emit, log, rows, shown

if TYPE_CHECKING:
    from sightline.pipelines.evaluate.evaluate import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="An artifact, an open_clip folder, or an open_clip name.")],
    corpus: Annotated[Path, typer.Argument(help="A corpus that `sightline ingest` wrote.")],
    split: Annotated[str | None, typer.Option(help="Which rows; default: test, or all where there is no such split.")] = None,
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
    """
    from sightline.models import artifact
    from sightline.models.load import load_model
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.evaluate.evaluate import evaluate as score

    opened = Corpus.open(corpus)
    folder = artifact.find(model)
    loaded = artifact.load_any(folder, device) if folder else load_model(model, device)
    with stages_bar() as progress:
        report = score(loaded, opened, split, progress)
    log.print(f"{report.model} on {corpus} (split {report.split or 'all rows'}, root {report.corpus_root[:12]})")
    emit(asdict(report), json, scores_table(report))


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
