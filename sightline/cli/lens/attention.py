"""`sightline lens attention MODEL`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.lens.common import Images, Model, Out, Photos, Seed, Split, Weights, show
from sightline.cli.output import Json, rows


def attention(
    model: Model,
    corpus: Photos,
    weights: Weights = "",
    seed: Seed = None,
    split: Split = None,
    images: Images = 6,
    label: Annotated[
        str, typer.Option(help="Relevance for a text (CLIP) or a class (classifier of ours); by default the largest output.")
    ] = "",
    layer: Annotated[str, typer.Option(help="Draw this layer's heads on the first image: a name, or a number.")] = "",
    out: Out = Path("lens"),
    json: Json = False,
) -> None:
    """Show what attends to what: distance and entropy by head and depth, rollout and relevance over images.

    \b
    Example:
      sightline lens attention timm/deit_tiny_patch16_224 corpora/imagenette --weights deit_tiny.safetensors --layer 3
      sightline lens attention runs/clip_small-0123456789ab corpora/flickr8k --label "a dog" --json
    """
    from sightline.models.lenses.subject import load_subject
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.lens.attention import look
    from sightline.pipelines.lens.figures import need
    from sightline.pipelines.lens.images import pictures, spread

    need()

    subject, opened = load_subject(model, weights, seed), Corpus.open(corpus)
    pixels = pictures(opened, spread(opened, split, images), subject.preprocess)
    seen = look(subject, pixels, out, label=label, layer=layer)
    lines = [
        (one["layer"], span(one["distance_px"], ".0f"), span(one["entropy_nats"], ".2f"), str(len(one["entropy_nats"])))
        for one in seen.numbers["layers"]
    ]
    show(seen, out, json, rows(("layer", "distance, px", "entropy, nats", "heads"), lines, subject.name))


def span(values: list[float] | None, form: str) -> str:
    """The least and the largest of the heads."""
    return "pools" if values is None else f"{format(min(values), form)} to {format(max(values), form)}"
