"""`sightline lens supervised MODEL CORPUS...`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.bars import stages_bar
from sightline.cli.evaluate import numbers
from sightline.cli.lens.common import Out, show
from sightline.cli.output import Json, rows


def supervised(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An artifact, an open_clip folder, or an open_clip name.")],
    corpora: Annotated[list[str], typer.Argument(metavar="CORPUS...", help="With labels, and a split `train` for the probes.")],
    split: Annotated[str | None, typer.Option(help="Which rows are scored; default: test, else val.")] = None,
    shots: Annotated[str, typer.Option(metavar="N,...", help="Rows a class of the few-shot probes.")] = "1,2,4,8,16",
    seeds: Annotated[int, typer.Option(min=1, help="Draws for each of them.")] = 5,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    out: Out = Path("lens"),
    json: Json = False,
) -> None:
    """Compare zero-shot with linear probes on a few labelled rows a class and on all of them, corpus by corpus.

    \b
    Example:
      sightline lens supervised runs/clip_small-0123456789ab corpora/imagenette
      sightline lens supervised ViT-B-32/laion2b_s34b_b79k corpora/imagenette corpora/pets --split val --shots 1,4,16 --seeds 10
    """
    from sightline.models import artifact
    from sightline.models.load import load_model
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.evaluate.protocols import evaluate_few_shot
    from sightline.pipelines.lens.figures import need
    from sightline.pipelines.lens.supervised import look, matched, names

    need()
    wanted, opened = numbers(shots), [Corpus.open(corpus) for corpus in corpora]
    named = dict(zip(names([corpus.location for corpus in opened]), opened, strict=True))
    folder = artifact.find(model)
    loaded = artifact.load_any(folder, device) if folder else load_model(model, device)
    found = {}
    with stages_bar() as progress:
        for name, corpus in named.items():
            # One bar a corpus: the second pass over images, of the rows that are scored, begins it again.
            found[name] = evaluate_few_shot(loaded, corpus, split, wanted, seeds, partial(relabelled, progress, name))
    seen = look(found, out)
    lines = [
        (
            one["corpus"],
            within(one["zero_shot"]),
            within(one["linear_probe"]),
            "{mean:+.1f} ({low:+.1f} to {high:+.1f})".format(**one["zero_shot_minus_probe_points"]),
            matched(one),
        )
        for one in seen.numbers["corpora"]
    ]
    average = seen.numbers["average"]
    if len(found) > 1:
        apart = f"{100 * (average['zero_shot'] - average['linear_probe']):+.1f}"
        lines.append(("average", f"{average['zero_shot']:.1%}", f"{average['linear_probe']:.1%}", apart, matched(average)))
    header = ("corpus", "zero-shot", "probe, all rows", "difference, points", "examples a class that match")
    show(seen, out, json, rows(header, lines, seen.numbers["model"]))


def relabelled(progress: Callable[[str, int, int], None], name: str, stage: str, done: int, total: int) -> None:
    """A stage of one corpus among several."""
    progress(f"{name}: {stage}", done, total)


def within(share: Mapping[str, float]) -> str:
    """A share and its interval."""
    return "{mean:.1%} ({low:.1%} to {high:.1%})".format(**share)
