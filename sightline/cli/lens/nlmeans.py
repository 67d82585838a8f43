"""`sightline lens nlmeans CORPUS`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.lens.common import Images, Out, Photos, Split, show
from sightline.cli.output import Json, rows


def nlmeans(
    corpus: Photos,
    split: Split = None,
    images: Images = 3,
    sigmas: Annotated[list[float] | None, typer.Option("--sigma", min=0.1, help="Of the noise, 0 to 255. Repeat it.")] = None,
    patch: Annotated[int, typer.Option(min=1, help="Side of the patches that are compared; odd.")] = 7,
    distance: Annotated[int, typer.Option(min=0, help="How many rows and columns away a pixel may be.")] = 11,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    out: Out = Path("lens"),
    json: Json = False,
) -> None:
    """Add noise to photos and take it out by non-local means: the ancestor of self-attention.

    \b
    Example:
      sightline lens nlmeans corpora/photos --sigma 10 --sigma 25 --sigma 50
    """
    from sightline.models.codec import decode_rgb
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.lens.figures import need
    from sightline.pipelines.lens.images import spread
    from sightline.pipelines.lens.nlmeans import look

    need()

    opened = Corpus.open(corpus)
    photos = [decode_rgb(opened.image(row), max_pixels=opened.max_pixels) for row in spread(opened, split, images)]
    seen = look(photos, sigmas or [10, 25, 50], out, patch=patch, distance=distance, seed=seed)
    lines = [
        (f"σ {row['sigma']:g}", *(f"{row[name][what]:.2f}" for name in ("noisy", "denoised") for what in ("psnr_db", "ssim")))
        for row in seen.numbers["rows"]
    ]
    show(seen, out, json, rows(("noise", "noisy, dB", "SSIM", "denoised, dB", "SSIM"), lines))
