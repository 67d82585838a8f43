"""`sightline corpus gc CORPUS`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sightline.cli.output import Json, emit, facts, log


def gc(
    corpus: Annotated[str, typer.Argument(help="A corpus: a folder or a URL.")],
    purge: Annotated[
        bool, typer.Option("--purge", help="Keep the current generation only; older roots cannot be opened then.")
    ] = False,
    older_than: Annotated[float, typer.Option(min=0, metavar="HOURS", help="Age of a file that nobody names.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    json: Json = False,
) -> None:
    """Remove files that no generation of a corpus names.

    What an unfinished ingest has written stays; with --purge, only if some of it was written in the last --older-than
    hours, or else it is taken for abandoned and removed. With --purge, rows that were forgotten are gone for good, and so
    is what the plans said of them, but for their keys. Copies in ~/.cache/sightline of machines that read the corpus from an
    object store are not touched.

    \b
    Example:
      sightline corpus gc corpora/photos --dry-run
      sightline corpus gc corpora/photos --purge
    """
    from sightline.pipelines.corpus.gc import collect
    from sightline.pipelines.corpus.store import open_store

    done = collect(open_store(corpus), purge=purge, older_than_s=older_than * 3_600, dry_run=dry_run)
    if done.abandoned:
        log.print(f"{'would be ' * dry_run}removed: {len(done.abandoned)} abandoned plans ({', '.join(done.abandoned)})")
    freed = f"{done.bytes:,} bytes in {done.files:,} files {'would be freed' if dry_run else 'freed'}"
    if done.unfinished:
        log.print(
            f"kept: {len(done.unfinished)} unfinished plans ({', '.join(done.unfinished)}); end each by the command that began it"
        )
    shown = {
        "": freed,
        "revoked generations": ", ".join(map(str, done.revoked)) or "none",
        "redacted inputs": done.redacted,
        "abandoned plans": len(done.abandoned),
    }
    emit({"corpus": corpus, "dry_run": dry_run, **asdict(done)}, json, freed if not purge else facts(shown))
