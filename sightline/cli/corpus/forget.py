"""`sightline corpus forget CORPUS UID...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sightline.cli.output import Json, emit, facts, log


def forget(
    corpus: Annotated[str, typer.Argument(help="A corpus: a folder or a URL.")],
    uids: Annotated[list[str] | None, typer.Argument(metavar="UID...", help="Rows' uids, or images' sha256s, in hex.")] = None,
    from_file: Annotated[Path | None, typer.Option("--from", help="A file with one of them a line.")] = None,
    json: Json = False,
) -> None:
    """Take rows out of a corpus: their shards are written again without them, as a new generation with a new root.

    What was forgotten does not come back by an append or a merge: salted digests remember it and name nothing. Older
    generations still hold the rows until `sightline corpus gc CORPUS --purge`.

    \b
    Example:
      sightline corpus forget corpora/photos 5e2f3c0d8a7b4f619c2d1e0f3a4b5c6d
      sightline corpus forget s3://bucket/photos --from requests.txt
    """
    from sightline.pipelines.corpus.forget import forget as take_out
    from sightline.pipelines.corpus.store import open_store

    listed = [] if from_file is None else [line for line in from_file.read_text("utf-8").splitlines() if line.strip()]
    done = take_out(open_store(corpus), [*(uids or ()), *listed])
    manifest = done.manifest
    result = {
        "corpus": corpus,
        "forgotten": done.rows,
        "shards_rewritten": done.shards,
        "generation": manifest.generation,
        "rows": manifest.rows,
        "root": manifest.root,
        "columns_to_redo": list(done.columns_to_redo),
    }
    if not done.rows:
        log.print("all of these were forgotten before")
    if done.columns_to_redo:
        log.print(f"make these columns again: {', '.join(done.columns_to_redo)}")
    if manifest.generation > 1:
        log.print(f"older generations still hold them; `sightline corpus gc {corpus} --purge` removes those", soft_wrap=True)
    apart = ("columns_to_redo", "root")  # a root is copied, so no column may break it
    emit(result, json, facts({name: value for name, value in result.items() if name not in apart}), f"root  {manifest.root}")
