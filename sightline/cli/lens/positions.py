"""`sightline lens positions MODEL`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.bars import stages_bar
from sightline.cli.lens.common import Model, Out, Seed, Weights, show
from sightline.cli.output import Json, rows


def positions(
    model: Model,
    weights: Weights = "",
    seed: Seed = None,
    sizes: Annotated[
        list[int] | None, typer.Option("--size", min=1, help="With --corpus: accuracy at this image size, too. Repeat it.")
    ] = None,
    corpus: Annotated[str | None, typer.Option(help="A labelled corpus, for --size.")] = None,
    split: Annotated[str, typer.Option(help="Which rows are scored; a probe is fitted to `train`.")] = "val",
    images: Annotated[int, typer.Option(min=2, help="How many are scored.")] = 200,
    out: Out = Path("lens"),
    json: Json = False,
) -> None:
    """Compare position embeddings, and see what interpolating them to other resolutions does to accuracy.

    Accuracy is zero-shot for a model with a text tower, otherwise that of a linear probe fitted at the model's own resolution.

    \b
    Example:
      sightline lens positions timm/deit_tiny_patch16_224 --weights deit_tiny.safetensors
      sightline lens positions runs/clip_small-0123456789ab --corpus corpora/photos --size 48 --size 96 --split test
    """
    from sightline.models.lenses.subject import load_subject
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.lens.figures import need
    from sightline.pipelines.lens.positions import look
    from sightline.pipelines.lens.resolution import accuracies, draw

    need()

    if bool(sizes) != (corpus is not None):
        raise ValueError("accuracy at other sizes needs both --corpus and --size")
    subject = load_subject(model, weights, seed)
    seen = look(subject, out)
    lines = [
        (one["kind"], *("" if value is None else f"{value:.2f}" for value in one["cosine"].values()))
        for one in seen.numbers["embeddings"]
    ]
    tables = [rows(("cosine of places", "neighbours", "same row", "same column", "others"), lines, subject.name)]
    if sizes and corpus:
        with stages_bar() as progress:
            found = accuracies(subject, Corpus.open(corpus), split, sizes, images, progress)
        picture = draw(subject.name, found, subject.preprocess.size, out / "positions-sizes.svg")
        seen = replace(seen, figures=(*seen.figures, picture), numbers={**seen.numbers, "top1_by_size": found})
        tables.append(rows(("image size", "top-1"), [(str(size), f"{value:.1%}") for size, value in found.items()]))
    show(seen, out, json, *tables)
