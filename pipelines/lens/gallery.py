"""The lens `gallery`: all lenses that apply to a model, in one self-contained page.

A lens that does not apply (attention, of a network that has none) is named with its reason; any other trouble stops the page.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from sightline.models.lenses.subject import DoesNotApply, Subject
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.protocols import evaluate_few_shot
from sightline.pipelines.lens import attention, erf, nlmeans, positions, receptive_field, supervised
from sightline.pipelines.lens.erf import Part
from sightline.pipelines.lens.images import pictures, spread
from sightline.pipelines.lens.report import Seen

TITLES = {
    "receptive-field": "How far a unit can see",
    "erf": "How far it does see",
    "attention": "What attends to what",
    "positions": "What it knows of where",
    "nlmeans": "Averaging what looks alike",
    "supervised": "What names are worth",
}
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
STYLE = (
    ":root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "img{max-width:100%;background:#fff}figure{margin:1rem 0}p.source{font-size:.85rem;opacity:.75}"
)
PROBED = 4000  # rows of a split at most, for probes
Watch = Callable[[str, int, int], None]


def look(
    subject: Subject, part: Part, corpus: Corpus, folder: Path, *, images: int, watch: Watch = lambda *_: None
) -> tuple[list[Seen], dict[str, str]]:
    """What each lens gives, and why the others do not apply.

    Args:
        part: the same model for the lens `erf`, which loads it by itself.
    """
    rows = spread(corpus, part.split, images)

    def fields() -> Seen:
        return erf.report([part], [erf.compute(part)], folder)

    def names_beside_probes() -> Seen:
        if subject.clip is None:
            raise DoesNotApply(f"{subject.name} has no text tower, and so no class by its name")
        try:
            found = evaluate_few_shot(subject.clip, corpus, part.split, at_most=PROBED)
        except ValueError as error:  # of its labels or splits, which a corpus need not have
            raise DoesNotApply(str(error)) from None
        return supervised.look({corpus.location.rstrip("/").rpartition("/")[2]: found}, folder)

    lenses: dict[str, Callable[[], Seen]] = {
        "receptive-field": lambda: receptive_field.look(subject, folder),
        "erf": fields,
        "attention": lambda: attention.look(subject, pictures(corpus, rows, subject.preprocess), folder),
        "positions": lambda: positions.look(subject, folder),
        "nlmeans": lambda: nlmeans.look([pictures(corpus, rows[:1], subject.preprocess)[0].permute(1, 2, 0).numpy()], [25], folder),
        "supervised": names_beside_probes,
    }
    found: list[Seen] = []
    without: dict[str, str] = {}
    for number, (name, lens) in enumerate(lenses.items()):
        watch("lenses", number, len(lenses))
        try:
            found.append(lens())
        except DoesNotApply as error:
            without[name] = str(error)
    watch("lenses", len(lenses), len(lenses))
    return found, without


def page(model: str, found: Sequence[Seen], without: dict[str, str]) -> str:
    """One HTML page with all figures inside."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>What {escape(model)} sees</title><style>{STYLE}</style>",
        f"<h1>What {escape(model)} sees</h1>",
    ]
    for seen in found:
        heading = escape(TITLES.get(seen.lens, seen.lens))
        parts.append(f'<section id="{seen.lens}"><h2>{heading}</h2><p>{escape(seen.caption)}</p>')
        for figure in seen.figures:
            data = base64.b64encode(figure.read_bytes()).decode()
            name = f"{heading}: {escape(figure.stem)}"
            parts.append(f'<figure><img alt="{name}" src="data:{TYPES[figure.suffix]};base64,{data}"></figure>')
        parts.append(f'<p class="source">{escape(seen.source)}</p></section>')
    if without:
        parts.append("<section><h2>What does not apply</h2><ul>")
        parts += [f"<li>{escape(name)}: {escape(why)}</li>" for name, why in without.items()]
        parts.append("</ul></section>")
    return "\n".join([*parts, "</html>", ""])
