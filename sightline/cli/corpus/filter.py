"""`sightline corpus filter CORPUS NAME`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from sightline.cli.output import Json, emit, log, rows, shown


def filter(
    corpus: Annotated[str, typer.Argument(help="A corpus that `sightline ingest` wrote.")],
    name: Annotated[str, typer.Argument(help="The filter's name: a-z, 0-9, _ and -.")],
    min_side: Annotated[int | None, typer.Option(help="Pixels of the shorter side, at least.")] = None,
    max_side: Annotated[int | None, typer.Option(help="Pixels of the longer side, at most.")] = None,
    min_pixels: Annotated[int | None, typer.Option(help="Width x height, at least.")] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Width x height, at most.")] = None,
    max_aspect: Annotated[float | None, typer.Option(help="Longer side over shorter, at most.")] = None,
    caption_chars: Annotated[str | None, typer.Option(metavar="LEAST:MOST", help="Length of each caption.")] = None,
    caption_words: Annotated[str | None, typer.Option(metavar="LEAST:MOST", help="Words of each caption; 3: is 3 or more.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Of the captions, as en; may be repeated.")] = None,
    format: Annotated[list[str] | None, typer.Option(help="Of the image, as jpeg; may be repeated.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    duplicates: Annotated[
        Literal["pairs", "exact", "near"] | None,
        typer.Option(help="Keep one row of equal pairs, of equal image bytes, or of look-alikes (needs `corpus score --phash`)."),
    ] = None,
    distance: Annotated[
        int | None, typer.Option(help="Bits of 64 in which look-alikes may differ, for near and --against; 6 by default.")
    ] = None,
    score: Annotated[str | None, typer.Option(help="A column that `corpus score` made, for --min, --max, --top.")] = None,
    min: Annotated[float | None, typer.Option(help="The score, at least.")] = None,
    max: Annotated[float | None, typer.Option(help="The score, at most.")] = None,
    top: Annotated[float | None, typer.Option(help="The share of the corpus with the highest scores, as 0.3.")] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="CORPUS", help="Keep its images out, by bytes and look-alikes; may be repeated.")
    ] = None,
    json: Json = False,
) -> None:
    """Write which rows pass all of some conditions; nothing is removed.

    Training takes filters by name: `sightline train RECIPE corpus=... filters=big,nodup`. A filter of the same name is replaced.
    After the corpus has grown, the same command again judges the new rows.

    \b
    Example:
      sightline corpus filter corpora/photos big --min-side 200 --max-aspect 3
      sightline corpus filter corpora/photos short --caption-words 3:40 --language en
      sightline corpus filter corpora/photos nodup --duplicates near --distance 6
      sightline corpus filter corpora/photos good --score clip --top 0.3
      sightline corpus filter corpora/photos clean --against corpora/flickr8k-test
    """
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.curate.filters import FilterSpec, make_filter
    from sightline.pipelines.curate.rules import RowRules

    spec = FilterSpec(
        rows=RowRules(
            min_side=min_side,
            max_side=max_side,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_aspect=max_aspect,
            caption_chars=parsed_range(caption_chars),
            caption_words=parsed_range(caption_words),
            languages=tuple(language or ()),
            formats=tuple(format or ()),
            splits=tuple(split or ()),
        ),
        duplicates=duplicates,
        distance=distance,
        score=score,
        minimum=min,
        maximum=max,
        top=top,
        against=tuple(against or ()),
    )
    opened = Corpus.open(corpus)
    info = make_filter(opened, name, spec)
    passed, of = info.counts.get("passed", 0), info.rows
    costs = {key.removeprefix("cost/"): count for key, count in info.counts.items() if key.startswith("cost/")}
    result = {"filter": name, "corpus": corpus, "root": info.root, "rows": of, "passed": passed, "costs": costs, "rule": info.rule}
    log.print(f"{passed:,} of {of:,} rows pass {name}; it costs {of - passed:,}")
    emit(result, json, rows(("condition", "rows that fail it"), [(key, shown(count)) for key, count in costs.items()]))


def parsed_range(text: str | None) -> tuple[int | None, int | None] | None:
    """`3:40`, `3:` or `:40`.

    Raises:
        ValueError: it is none of these.
    """
    if text is None:
        return None
    low, colon, high = text.partition(":")
    if not colon or not (low or high) or not all(part.isdecimal() or not part for part in (low, high)):
        raise ValueError(f"{text!r} is no range; give LEAST:MOST, as 3:40, 3: or :40")
    return (int(low) if low else None, int(high) if high else None)
