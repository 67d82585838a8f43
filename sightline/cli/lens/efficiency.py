"""`sightline lens efficiency RUN...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.lens.common import Out, show
from sightline.cli.output import Json, rows


def efficiency(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders that `sightline train ... --evaluate SPLIT` wrote.")
    ],
    metric: Annotated[str, typer.Option(help="One of the checkpoints' scores.")] = "top1",
    out: Out = Path("lens"),
    json: Json = False,
) -> None:
    """Compare how many samples training runs took for the same score, such as zero-shot accuracy of contrasting and of predicting.

    Runs of one corpus; those that differ by their seed alone are one line.

    \b
    Example:
      sightline lens efficiency runs/clip_demo-0123456789ab runs/words_demo-0123456789ab runs/captions_demo-0123456789ab
      sightline lens efficiency runs/clip_small-* runs/lit_small-* --metric image_to_text_recall@10 --json
    """
    from sightline.pipelines.lens.efficiency import look, read
    from sightline.pipelines.lens.figures import need

    need()
    seen = look([read(run) for run in runs], metric, out)
    lines = [
        (
            one["label"],
            f"{one['best']:.1%}",
            f"{'at most ' if one['at_most'] else ''}{one['samples_to_level']:,.0f}",
            f"{'at least ' if one['at_most'] else ''}{one['times_fewer']:.1f}×",
        )
        for one in seen.numbers["lines"]
    ]
    header = (seen.numbers["metric"], "best", f"samples to {seen.numbers['level']:.1%}", "times fewer")
    show(seen, out, json, rows(header, lines))
