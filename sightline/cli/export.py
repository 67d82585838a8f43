"""`sightline export ARTIFACT DEST --to open_clip|timm|onnx|hf`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from sightline.cli.output import Json, emit, facts, log


def export(
    artifact: Annotated[Path, typer.Argument(help="An artifact, or the folder of a run, that `sightline train` wrote.")],
    destination: Annotated[Path, typer.Argument(metavar="DEST", help="The folder to write; it must not exist.")],
    to: Annotated[Literal["open_clip", "timm", "onnx", "hf"], typer.Option(help="The library that is to load it.")],
    json: Json = False,
) -> None:
    """Write a trained model as a folder that another library loads unchanged.

    \b
    open_clip  both towers, preprocessing, tokenizer; also for `sightline serve` and `evaluate`
    timm       the image tower; its classifier gives the embedding
    onnx       both towers as graphs, with preprocessing and tokenizer  (pip install "sightline[onnx]")
    hf         CLIPModel and CLIPProcessor of transformers              (pip install "sightline[hf]")

    The library loads the folder before it gets its name: where its embeddings differ from the artifact's by more than 1e-6 (ONNX:
    1e-4), nothing is written.

    \b
    Example:
      sightline export runs/clip_small-0123456789ab exported/clip_small --to open_clip
      sightline export runs/clip_demo-0123456789ab/artifact exported/demo --to onnx --json
    """
    from sightline.models.interchange.export import export as write

    exported = write(artifact, destination, to)
    result = asdict(exported)
    text = "no text tower there" if exported.text_difference is None else f"{exported.text_difference:.1e}"
    shown = {
        "folder": exported.folder,
        "image embeddings differ by": f"{exported.image_difference:.1e}",
        "text embeddings differ by": text,
    }
    log.print(f"exported to {to}: {len(exported.files)} files")
    emit(result, json, facts(shown), f"load it with: {exported.load}")
