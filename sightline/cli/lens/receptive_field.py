"""`sightline lens receptive-field MODEL`."""

from __future__ import annotations

from pathlib import Path

from sightline.cli.lens.common import Model, Out, Seed, Weights, show
from sightline.cli.output import Json, log, rows


def receptive_field(model: Model, weights: Weights = "", seed: Seed = None, out: Out = Path("lens"), json: Json = False) -> None:
    """Print the theoretical receptive field of every layer.

    For a convolutional network in closed form from kernels, strides, dilations and paddings, along all branches; for attention
    by the gradient, block by block.

    \b
    Example:
      sightline lens receptive-field timm/resnet50 --seed 0
      sightline lens receptive-field runs/clip_demo-0123456789ab --out lens --json
    """
    from sightline.models.lenses.subject import load_subject
    from sightline.pipelines.lens.figures import need
    from sightline.pipelines.lens.receptive_field import look

    need()

    seen = look(load_subject(model, weights, seed), out)
    lines = [
        (row["layer"], row["kind"], "all" if row["size"] is None else f"{row['size']:,}", str(row["stride"]))
        for row in seen.numbers["layers"]
    ]
    if seen.numbers["without_closed_form"]:
        log.print(seen.numbers["without_closed_form"])
    show(seen, out, json, rows(("layer", "kind", "pixels", "stride"), lines, str(seen.numbers["model"])))
