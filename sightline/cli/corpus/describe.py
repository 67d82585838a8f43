"""`sightline corpus describe CORPUS`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sightline.cli.output import Json, emit, facts, log, rows

if TYPE_CHECKING:
    from sightline.pipelines.corpus.describe import Description

BLOCKS = " ▁▂▃▄▅▆▇█"


def describe(
    corpus: Annotated[str, typer.Argument(help="A corpus: a folder or a URL.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one HTML page, with a contact sheet of samples.")] = None,
    split: Annotated[str | None, typer.Option(help="Only these rows; default: all.")] = None,
    filters: Annotated[
        str | None, typer.Option(metavar="A,B", help="What these filters cost, alone and after those before them.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the samples of the contact sheet.")] = 0,
    json: Json = False,
) -> None:
    """Tell what is in a corpus: counts, formats, sizes, captions, classes, what was left out and why, what filters cost.

    \b
    Example:
      sightline corpus describe corpora/photos
      sightline corpus describe corpora/photos --split train --html photos.html
      sightline corpus describe corpora/photos --filters big,nodup
    """
    from sightline.pipelines.corpus.describe import as_json
    from sightline.pipelines.corpus.describe import describe as look
    from sightline.pipelines.corpus.reader import Corpus

    opened = Corpus.open(corpus)
    found = look(opened, split, [] if filters is None else filters.split(","))
    if html is not None:
        from sightline.pipelines.corpus.page import html_page

        html.write_text(html_page(opened, found, seed), "utf-8")
        log.print(f"wrote {html}", soft_wrap=True)
    emit({"corpus": corpus, **as_json(found)}, json, *tables(found))


def tables(one: Description) -> list[Table | str]:
    from sightline.pipelines.corpus.page import size
    from sightline.pipelines.corpus.schema import canonical_json

    what = "all rows" if one.split is None else f"split {one.split}"
    general = {
        "corpus": f"{escape(one.location)} ({what}, generation {one.generation})",
        "rows": f"{one.rows:,} in {one.shards:,} shards, {size(one.bytes)} of images",
        "with captions, labels, masks": f"{one.captioned:,}, {one.labelled:,}, {one.masks:,}",
        "repeats": f"{one.equal_pairs:,} rows repeat an image with its captions, {one.equal_images:,} an image",
        "inputs": f"{one.seen:,} seen = {one.kept:,} kept + {one.filtered:,} filtered + {one.errors:,} errors"
        + (f" + {one.forgotten:,} forgotten" if one.forgotten else ""),
    }
    head = facts(general)
    head.columns[1].justify = "left"
    found: list[Table | str] = [head, f"root  {one.root}"]  # by itself: a root is copied, so no column may break it
    for title, counted in (("left out as", one.codes), ("split", one.splits), ("format", one.formats), ("class", one.classes)):
        found += counts_table(title, counted)
    if one.class_count > len(one.classes):
        found.append(f"and {one.class_count - len(one.classes):,} classes more")
    if one.histograms:
        found += ["", *histograms_tables(one)]
    for each in one.filters:
        found += counts_table(f"filter {each.name}: rows that fail", {**each.costs, "any": each.rows - each.passed})
    if one.view:
        costs = [(each.name, *(f"{count:,}" for count in (each.alone, each.after, each.left))) for each in one.view]
        found += ["", rows(("filter: rows that fail", "alone", "after those before", "left"), costs)]
    if one.columns:
        table = rows(("column", "kind", "rows", "rule"), [])
        table.columns[1].justify = table.columns[3].justify = "left"
        for column in one.columns:
            kind = column.kind if column.current else f"{column.kind} (of another root)"
            table.add_row(column.name, kind, f"{column.rows:,}", Text(canonical_json(column.rule)))
        found += ["", table]
    return found


def counts_table(title: str, counted: Mapping[str, int]) -> list[Table | str]:
    return ["", rows((title, "rows"), [(escape(name), f"{count:,}") for name, count in counted.items()])] if counted else []


def histograms_tables(one: Description) -> list[Table | str]:
    """The quantiles, then the histograms: beside each other they are too wide for a terminal."""
    from sightline.pipelines.corpus.page import number, quantile_names

    titles = [f"{each.name} ({each.unit})" for each in one.histograms]
    lines = [(title, *map(number, each.quantiles), number(each.mean)) for title, each in zip(titles, one.histograms, strict=True)]
    width = max(map(len, titles))
    pictures = [f"{title:<{width}}  {sparkline(each.counts)}" for title, each in zip(titles, one.histograms, strict=True)]
    return [rows(("", *quantile_names(), "mean"), lines), "", *pictures]


def sparkline(counts: tuple[int, ...]) -> str:
    """Counts as a line of blocks; whatever is not zero shows."""
    top = max(counts)
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // top)] for count in counts)
