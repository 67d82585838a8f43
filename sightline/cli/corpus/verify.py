"""`sightline corpus verify CORPUS`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from sightline.cli.bars import stages_bar
from sightline.cli.output import Json, emit


def verify(
    corpus: Annotated[str, typer.Argument(help="A corpus: a folder or a URL.")],
    quick: Annotated[bool, typer.Option("--quick", help="Sizes, manifests, plans and counts only; no image is read.")] = False,
    cpus: Annotated[int, typer.Option(min=1, help="Processes that read shards.")] = 1,
    json: Json = False,
) -> None:
    """Check every checksum, count and schema of a corpus; name each damaged file and the rows in it.

    All generations are checked. The exit status is 0 for an intact corpus, 1 for a damaged one, 2 where there is none to check.

    \b
    Example:
      sightline corpus verify corpora/photos --cpus 8
      sightline corpus verify s3://bucket/photos --quick --json
    """
    from sightline.pipelines.corpus.store import open_store
    from sightline.pipelines.corpus.verify import verify as check

    begun = time.monotonic()
    with stages_bar() as progress:
        found = check(open_store(corpus), quick=quick, cpus=cpus, progress=lambda done, of: progress("verify", done, of))
    intact = not found.damages
    seconds = round(time.monotonic() - begun, 3)
    what = f"{found.shards:,} shards, {found.rows:,} rows, {found.bytes / 1e9:,.3f} GB"
    how = "have their sizes and counts (no image was read)" if quick else "verified"
    lines = [f"{what} {how}"] if intact else [str(damage) for damage in found.damages]
    if not intact:
        lines.append(f"damaged in {len(found.damages):,} places of {what}; restore these files from a copy, or ingest again")
    if json:
        emit({"corpus": corpus, "intact": intact, "quick": quick, "seconds": seconds, **asdict(found)}, json)
    else:
        print("\n".join(lines))  # a line a damage, however narrow the terminal
    if not intact:
        raise typer.Exit(1)
