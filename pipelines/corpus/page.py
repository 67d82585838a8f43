"""A corpus on one HTML page that needs nothing but itself: figures as inline SVG, thumbnails as data URLs, light and dark.

Whatever a corpus says (keys, captions, names of classes) is escaped: it comes from strangers.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO

from PIL import Image

from sightline.models.codec import ImageError, decode_rgb
from sightline.pipelines.corpus.describe import QUANTILES, Description, Histogram, Sample, draw_samples
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import canonical_json

SAMPLES, THUMBNAIL, CAPTION = 24, 320, 160
WIDTH, HEIGHT = 360, 120

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --card: #ffffff; --ink: #1d1d1f; --quiet: #6b6b70; --line: #e4e2dd;
  --bar: #2f6f8f; --warm: #b3541e; }
@media (prefers-color-scheme: dark) { :root { --paper: #141416; --card: #1d1d20; --ink: #ececf0; --quiet: #9a9aa2;
  --line: #323238; --bar: #6fb2d2; --warm: #e58a52; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 24px 64px; }
header p, small, th, figcaption span { color: var(--quiet); }
h1 { margin: 0; font-size: 30px; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { margin: 44px 0 14px; font-size: 18px; }
h3 { margin: 0 0 8px; font-size: 15px; font-weight: 600; }
h3 small { font-weight: 400; font-size: 12px; }
code { font: 13px ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-top: 24px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; min-width: 0; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
.tile span { color: var(--quiet); font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(265px, 100%), 1fr)); gap: 14px; }
.masonry { columns: 330px; column-gap: 14px; } .masonry .card { break-inside: avoid; margin-bottom: 14px; }
svg { display: block; width: 100%; height: auto; }
svg rect { fill: var(--bar); } svg line { stroke: var(--line); } svg text { fill: var(--quiet); font-size: 11px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { font-weight: 400; text-align: right; } td, th { padding: 3px 0 3px 10px; } th:first-child, td:first-child { padding-left: 0; }
td { text-align: right; white-space: nowrap; border-top: 1px solid var(--line); } tr:first-child td { border-top: 0; }
td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; width: 100%; } th:first-child { text-align: left; }
td.share { min-width: 70px; } td.share i { display: block; height: 8px; border-radius: 2px; background: var(--bar); }
.wrong td.share i { background: var(--warm); }
.quantiles { margin-top: 8px; font-size: 11px; table-layout: fixed; }
.quantiles td, .quantiles th, .quantiles td:first-child, .quantiles th:first-child { text-align: center; width: auto;
  padding: 0 2px; border: 0; white-space: nowrap; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(170px, 45%), 1fr)); gap: 16px 14px; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
figcaption { margin-top: 6px; font-size: 13px; line-height: 1.4; overflow-wrap: anywhere; }
figcaption span { display: block; font-size: 12px; }
@media (max-width: 500px) { main { padding: 24px 16px 40px; } h1 { font-size: 24px; } .tiles { grid-template-columns: 1fr 1fr; } }
"""


def html_page(corpus: Corpus, description: Description, seed: int = 0) -> str:
    """The page of a corpus, with thumbnails of rows drawn by the seed."""
    samples = draw_samples(corpus, description.split, SAMPLES, seed)
    name = escape(corpus.location.rstrip("/").rpartition("/")[2])
    root, generation = escape(description.root), escape(str(description.generation))
    what = "all rows" if description.split is None else f"split {escape(description.split)}"
    body = "\n".join(
        [
            f"<header><h1>{name}</h1><p>{what} of generation {generation} ({escape(description.change)})"
            f"<br><code>root {root}</code></p></header>",
            tiles(description),
            *section("Sizes and captions", "grid", [histogram_card(one) for one in description.histograms]),
            *section("What is in it, and what is not", "masonry", [*account_cards(description), *content_cards(description)]),
            f"<h2>{len(samples)} rows, drawn at random</h2>" if samples else "",
            '<div class="sheet">' + "\n".join(figure(corpus, sample) for sample in samples) + "</div>",
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}: {description.rows:,} rows</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, layout: str, cards: Sequence[str]) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", f'<div class="{layout}">', *cards, "</div>"] if cards else []


def tiles(one: Description) -> str:
    facts = {
        "rows": f"{one.rows:,}",
        "of images": size(one.bytes),
        "with captions": f"{one.captioned:,}",
        "with labels": f"{one.labelled:,}",
        "with a mask": f"{one.masks:,}",
        "repeat an image": f"{one.equal_images:,}",
        "errors": f"{one.errors:,}",
    }
    return (
        '<div class="tiles">'
        + "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in facts.items())
        + "</div>"
    )


def content_cards(one: Description) -> list[str]:
    more = f"the {len(one.classes)} most frequent of {one.class_count:,}" if one.class_count > len(one.classes) else ""
    cards = [
        card("Splits", one.splits, one.kept),
        card("Formats", one.formats, one.rows),
        card("Classes", one.classes, max(one.classes.values(), default=0), more),
    ]
    return [text for text in cards if text]


def account_cards(one: Description) -> list[str]:
    accounts = {"kept": one.kept, "filtered": one.filtered, "errors": one.errors, "forgotten": one.forgotten}
    cards = [card("Inputs", accounts, one.seen, f"{one.seen:,} seen"), card("Left out, by reason", one.codes, one.seen, wrong=True)]
    for each in one.filters:
        note = f"{each.passed:,} of {each.rows:,} rows pass" + ("" if each.current else "; of another root")
        cards.append(card(f"Filter {each.name}", each.costs or {"fails": each.rows - each.passed}, each.rows, note, wrong=True))
    if one.view:
        costs = {f"{cost.name} (alone {cost.alone:,})": cost.after for cost in one.view}
        note = f"each after those before it; {one.view[-1].left:,} of {one.rows:,} rows are left"
        cards.append(card("Filters together", costs, one.rows, note, wrong=True))
    if one.columns:
        stale = {True: "", False: ", made for another root"}
        made = {
            f"{each.name}: {each.kind}, {each.type}{stale[each.current]} {canonical_json(each.rule)}": each.rows
            for each in one.columns
        }
        cards.append(card("Columns", made, one.kept, "rows for which each was made"))
    return [text for text in cards if text]


def card(title: str, counted: Mapping[str, int], of: int, note: str = "", *, wrong: bool = False) -> str:
    """A table of counts with bars; nothing for no counts."""
    if not counted:
        return ""
    lines = "".join(
        f"<tr><td>{escape(name)}</td><td>{count:,}</td>"
        f'<td class="share"><i style="width:{100 * count / max(of, 1):.1f}%"></i></td></tr>'
        for name, count in counted.items()
    )
    small = f" <small>{escape(note)}</small>" if note else ""
    return f'<div class="card{" wrong" if wrong else ""}"><h3>{escape(title)}{small}</h3><table>{lines}</table></div>'


def histogram_card(one: Histogram) -> str:
    heads = "".join(f"<th>{escape(label)}</th>" for label in quantile_names())
    values = "".join(f"<td>{number(value)}</td>" for value in one.quantiles)
    return (
        f'<div class="card"><h3>{escape(one.name)} <small>{escape(one.unit)}, mean {number(one.mean)}</small></h3>{svg(one)}'
        f'<table class="quantiles"><tr>{heads}</tr><tr>{values}</tr></table></div>'
    )


def quantile_names() -> list[str]:
    return ["min" if q == 0 else "max" if q == 1 else f"{100 * q:.0f} %" for q in QUANTILES]


def svg(one: Histogram) -> str:
    """The bars of a histogram; the values stand below the first, the middle and the last edge."""
    top, bins = max(one.counts), len(one.counts)
    step = WIDTH / max(bins, 8)
    bars = "".join(
        f'<rect x="{i * step + 0.5:.1f}" y="{HEIGHT - height:.1f}" width="{step - 1:.1f}" height="{height:.1f}" rx="1">'
        f"<title>{number(one.edges[i])} to {number(one.edges[i + 1])}{' or more' * (i == bins - 1)}: {count:,}</title></rect>"
        for i, count in enumerate(one.counts)
        if (height := max(HEIGHT * count / top, 1.0 if count else 0.0))
    )
    ticks = {0: "start", bins // 2: "middle", bins: "end"} if bins > 1 else {0: "start"}
    labels = "".join(
        f'<text x="{min(i * step, WIDTH):.1f}" y="{HEIGHT + 14}" text-anchor="{anchor}">{number(one.edges[i])}</text>'
        for i, anchor in ticks.items()
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT + 18}" role="img" aria-label="histogram of {escape(one.name)}">{bars}'
        f'<line x1="0" x2="{WIDTH}" y1="{HEIGHT}" y2="{HEIGHT}"/>{labels}</svg>'
    )


def figure(corpus: Corpus, sample: Sample) -> str:
    words = sample.captions or sample.labels
    text = words[0] if words else ""
    text = escape(text if len(text) <= CAPTION else f"{text[:CAPTION]}…") or "<span>no caption, no label</span>"
    more = [f"and {len(words) - 1} more"] if len(words) > 1 else []
    tags = f"<span>{escape(', '.join([*more, *(sample.labels if sample.captions else ())]))}</span>"
    return (
        f'<figure><img alt="{escape(sample.key)}" title="row {sample.row}: {escape(sample.key)}" '
        f'src="{thumbnail(corpus, sample.row)}"><figcaption>{text}{tags}</figcaption></figure>'
    )


def thumbnail(corpus: Corpus, row: int) -> str:
    """A small JPEG of a row as a data URL; an empty one for a row whose image cannot be decoded any more."""
    try:
        image = Image.fromarray(decode_rgb(corpus.image(row), max_pixels=corpus.max_pixels))
    except ImageError:
        return "data:,"
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = BytesIO()
    image.save(out, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1_000 else f"{value:.3g}"


def size(nbytes: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes / 1e3:.3g} kB"
