"""`sightline corpus describe CORPUS`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sightline.cli.output import Json, emit, facts, log, rows

if TYPE_CHECKING:
    from sightline.pipelines.corpus.describe import Description

BLOCKS = " ▁▂▃▄▅▆▇█"


def describe(
    corpus: Annotated[str, typer.Argument(help="A corpus: a folder or a URL.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one HTML page, with a contact sheet of samples.")] = None,
    split: Annotated[str | None, typer.Option(help="Only these rows; default: all.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Draws the samples of the contact sheet.")] = 0,
    json: Json = False,
) -> None:
    """Tell what is in a corpus: counts, formats, sizes, captions, classes, what was left out and why, what filters cost.

    \b
    Example:
      sightline corpus describe corpora/photos
      sightline corpus describe corpora/photos --split train --html photos.html
    """
    from sightline.pipelines.corpus.describe import as_json
    from sightline.pipelines.corpus.describe import describe as look
    from sightline.pipelines.corpus.reader import Corpus

    opened = Corpus.open(corpus)
    found = look(opened, split)
    if html is not None:
        from sightline.pipelines.corpus.page import html_page

        html.write_text(html_page(opened, found, seed), "utf-8")
        log.print(f"wrote {html}", soft_wrap=True)
    emit({"corpus": corpus, **as_json(found)}, json, *tables(found))


def tables(one: Description) -> list[Table | str]:
    from sightline.pipelines.corpus.page import size

    what = "all rows" if one.split is None else f"split {one.split}"
    general = {
        "corpus": f"{escape(one.location)} ({what}, generation {one.generation})",
        "root": one.root,
        "rows": f"{one.rows:,} in {one.shards:,} shards, {size(one.bytes)} of images",
        "with captions, labels, masks": f"{one.captioned:,}, {one.labelled:,}, {one.masks:,}",
        "repeats": f"{one.equal_pairs:,} rows repeat an image with its captions, {one.equal_images:,} an image",
        "inputs": f"{one.seen:,} seen = {one.kept:,} kept + {one.filtered:,} filtered + {one.errors:,} errors"
        + (f" + {one.forgotten:,} forgotten" if one.forgotten else ""),
    }
    head = facts(general)
    head.columns[1].justify = "left"
    found: list[Table | str] = [head]
    for title, counted in (("left out as", one.codes), ("split", one.splits), ("format", one.formats), ("class", one.classes)):
        found += counts_table(title, counted)
    if one.class_count > len(one.classes):
        found.append(f"and {one.class_count - len(one.classes):,} classes more")
    if one.histograms:
        found += ["", histograms_table(one)]
    for each in one.filters:
        found += counts_table(f"filter {each.name}: rows that fail", {**each.costs, "any": each.rows - each.passed})
    if one.columns:
        found += ["", f"columns: {', '.join(one.columns)}"]
    return found


def counts_table(title: str, counted: Mapping[str, int]) -> list[Table | str]:
    return ["", rows((title, "rows"), [(escape(name), f"{count:,}") for name, count in counted.items()])] if counted else []


def histograms_table(one: Description) -> Table:
    from sightline.pipelines.corpus.page import number, quantile_names

    lines = [
        (f"{each.name} ({each.unit})", *map(number, each.quantiles), number(each.mean), sparkline(each.counts))
        for each in one.histograms
    ]
    table = rows(("", *quantile_names(), "mean", "histogram"), lines)
    table.columns[-1].justify = "left"
    return table


def sparkline(counts: tuple[int, ...]) -> str:
    """Counts as a line of blocks; whatever is not zero shows."""
    top = max(counts)
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // top)] for count in counts)
