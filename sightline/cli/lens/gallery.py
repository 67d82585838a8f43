"""`sightline lens gallery MODEL CORPUS`."""

from __future__ import annotations

from pathlib import Path

from sightline.cli.bars import stages_bar
from sightline.cli.lens.common import Images, Model, Out, Photos, Seed, Split, Weights
from sightline.cli.output import Json, emit


def gallery(
    model: Model,
    corpus: Photos,
    weights: Weights = "",
    seed: Seed = None,
    split: Split = None,
    images: Images = 6,
    out: Out = Path("lens"),
    json: Json = False,
) -> None:
    """Render every lens that applies to a model into one page that needs nothing else.

    \b
    Example:
      sightline lens gallery demo/runs/clip_demo-0123456789ab demo/corpus
      sightline lens gallery timm/deit_tiny_patch16_224 corpora/imagenette --weights deit_tiny.safetensors --out deit
    """
    from sightline.models.lenses.subject import load_subject
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.lens.erf import part_of
    from sightline.pipelines.lens.figures import need
    from sightline.pipelines.lens.gallery import look, page

    need()
    subject, opened = load_subject(model, weights, seed), Corpus.open(corpus)
    part = part_of(model, weights, seed=seed, corpus=opened.location, root=opened.root, split=split, images=images)
    with stages_bar() as progress:
        found, without = look(subject, part, opened, out, images=images, watch=progress)
    for seen in found:
        seen.write(out)
    path = out / "index.html"
    path.write_text(page(subject.name, found, without), encoding="utf-8")
    result = {"model": subject.name, "page": str(path), "lenses": [seen.lens for seen in found], "without": without}
    emit(result, json, *(f"{name}: {why}" for name, why in without.items()), str(path))
