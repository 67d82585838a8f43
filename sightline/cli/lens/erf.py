"""`sightline lens erf MODEL ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sightline import settings
from sightline.cli.bars import stages_bar
from sightline.cli.lens.common import MODEL, Corpus, Out, Split, Weights, show
from sightline.cli.output import Json, rows


def erf(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=MODEL)],
    weights: Weights = "",
    seeds: Annotated[int, typer.Option(min=0, help="Average over so many random initialisations of each architecture, too.")] = 0,
    trained: Annotated[bool, typer.Option("--trained/--no-trained", help="Look at the models' own weights, too.")] = True,
    layer: Annotated[str, typer.Option(help="Whose middle unit; by default the last block's.")] = "",
    corpus: Corpus = None,
    split: Split = None,
    images: Annotated[int, typer.Option(min=1, help="How many images for each set of weights.")] = 16,
    out: Out = Path("lens"),
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a local Ray; by default all.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; by default a local Ray.")] = None,
    json: Json = False,
) -> None:
    """Measure the effective receptive field: how much each pixel changes a layer's middle unit.

    Each set of weights is a Ray task of its own, and what is done is kept in --out: the same command goes on.

    \b
    Example:
      sightline lens erf timm/resnet18 --seeds 64 --no-trained
      sightline lens erf timm/resnet18 timm/convnext_tiny timm/vit_tiny_patch16_224 timm/swin_tiny_patch4_window7_224 --seeds 8
      sightline lens erf runs/imagenette_small-0123456789ab --seeds 8 --corpus corpora/imagenette
    """
    from sightline.infra.session import ray_session
    from sightline.pipelines.corpus.reader import Corpus as Opened
    from sightline.pipelines.lens.erf import Part, compute, part_of, report
    from sightline.pipelines.lens.figures import need
    from sightline.pipelines.lens.job import over

    need()
    if weights and len(models) > 1:
        raise ValueError("weights from a file are for one model; name it alone")
    opened = Opened.open(corpus) if corpus else None
    shared: dict[str, Any] = {
        "layer": layer,
        "corpus": opened.location if opened else "",
        "root": opened.root if opened else "",
        "split": split,
        "images": images,
    }
    parts: list[Part] = []
    for model in models:
        parts += [part_of(model, seed=seed, **shared) for seed in range(seeds)]
        parts += [part_of(model, weights, **shared)] if trained else []
    if not parts:
        raise ValueError("there is nothing to look at; give --seeds N for random weights, or leave --no-trained away")
    with ray_session(address or settings.ray_address(), num_cpus=cpus, debug=settings.debug()), stages_bar() as progress:
        found = over(parts, compute, out / "parts", lambda done, total: progress("fields", done, total))
    seen = report(parts, found, out)
    lines = [
        (
            f"{one['model']}, {one['weights']}",
            one["layer"],
            f"{one['sigma']:.1f}",
            f"{one['r2']:.3f}",
            f"{one['side']:.1f}",
            "all" if one["theoretical"] is None else f"{one['theoretical']:,}",
            f"{one['grows']['side']:.2f}" if "grows" in one else "",
        )
        for one in seen.numbers["fields"]
    ]
    show(seen, out, json, rows(("model", "layer", "σ, px", "R²", "√area, px", "theoretical, px", "√area grew ×"), lines))
