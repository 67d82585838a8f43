"""What the lenses share: how a model is named, which images are looked at, and what is printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli import output

if TYPE_CHECKING:  # heavy
    from sightline.pipelines.lens.report import Seen

MODEL = "An artifact or a run of ours, an open_clip folder or name, timm/NAME or torchvision/NAME."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL)]
Weights = Annotated[str, typer.Option(metavar="FILE", help="Weights of a timm/NAME or torchvision/NAME, in safetensors.")]
Seed = Annotated[int | None, typer.Option(help="Draw random weights instead, also for an artifact's architecture.")]
Photos = Annotated[str, typer.Argument(metavar="CORPUS", help="Look at its images.")]
Images = Annotated[int, typer.Option(min=1, max=64, help="How many, spread over the rows.")]
Corpus = Annotated[str | None, typer.Option("--corpus", help="Look at its images; by default at noise.")]
Split = Annotated[str | None, typer.Option(help="Which of the corpus's rows; by default all.")]
Out = Annotated[Path, typer.Option(help="The folder for figures and numbers; of another model, give another.")]


def show(seen: Seen, out: Path, json: bool, *tables: Any) -> None:
    """Keep a lens's numbers, and print where its figures are."""
    record = seen.write(out)
    figures = [str(figure) for figure in seen.figures]
    output.emit(
        {"lens": seen.lens, "figures": figures, "record": str(record), **seen.numbers},
        json,
        *tables,
        f"{seen.caption} ({seen.source})",
        *figures,
    )
