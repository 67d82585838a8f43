"""`sightline corpus merge DEST A B ...`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli.bars import stages_bar
from sightline.cli.output import Json, emit


def merge(
    dest: Annotated[str, typer.Argument(help="The new corpus: an empty folder, or a URL.")],
    sources: Annotated[list[str], typer.Argument(metavar="A B ...", help="The corpora, in the order of their rows.")],
    json: Json = False,
) -> None:
    """Join corpora into a new one, without reading an image; they stay as they are.

    On one file system files are hard links and take no space. The same command again goes on after an interruption.

    \b
    Example:
      sightline corpus merge corpora/all corpora/photos corpora/drawings
      sightline corpus merge s3://bucket/all s3://bucket/photos corpora/drawings
    """
    from sightline.pipelines.corpus.merge import merge as join

    with stages_bar() as progress:
        manifest = join(dest, sources, lambda done, of: progress("merge", done, of))
    result = {
        "corpus": dest,
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "shards": sum(page.shards for page in manifest.pages),
        "plans": len(manifest.plans),
        "classes": len(manifest.classes),
        "root": manifest.root,
    }
    emit(result, json)
