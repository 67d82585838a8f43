"""`sightline corpus export CORPUS DEST --to FORMAT`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from sightline.cli.bars import stages_bar
from sightline.cli.output import Json, emit, facts


def export(
    corpus: Annotated[str, typer.Argument(help="A corpus: a folder or a URL.")],
    dest: Annotated[str, typer.Argument(help="An empty folder, or a URL such as s3://bucket/folder.")],
    to: Annotated[str, typer.Option(help="webdataset, parquet or folder.")],
    split: Annotated[str | None, typer.Option(help="Only these rows; default: all.")] = None,
    rows_per_file: Annotated[int, typer.Option(help="Rows of a tar or Parquet file.")] = 8_192,
    json: Json = False,
) -> None:
    """Write a corpus in a format that others read, with the images' own bytes.

    webdataset: tar files with NAME.jpg, NAME.txt (the first caption), NAME.json (key, all captions, labels, extra) and
    perhaps NAME.mask.png. parquet: as the Hugging Face Hub keeps images, for `datasets`. folder: images/, masks/ and
    captions.jsonl. `sightline ingest DEST` reads each of them back: the same images, captions, labels and keys. The same
    command again finishes an export that was interrupted; export.json comes last.

    \b
    Example:
      sightline corpus export corpora/photos photos-tar --to webdataset
      sightline corpus export corpora/photos s3://bucket/photos --to parquet --split train
    """
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.export.export import export as write

    with stages_bar() as progress:
        report = write(
            Corpus.open(corpus),
            dest,
            to,
            split=split,
            rows_per_file=rows_per_file,
            progress=lambda done, total: progress("export", done, total),
        )
    result = {"dest": dest, **asdict(report)}
    emit(result, json, facts(result | {"split": split or "all rows"}))
