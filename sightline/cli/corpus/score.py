"""`sightline corpus score CORPUS NAME`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from sightline import settings
from sightline.cli.bars import stages_bar
from sightline.cli.output import Json, emit, facts

if TYPE_CHECKING:  # heavy
    from sightline.pipelines.curate.scorers import Scorer


def score(
    corpus: Annotated[str, typer.Argument(help="A corpus that `sightline ingest` wrote.")],
    name: Annotated[str, typer.Argument(help="The column's name: a-z, 0-9, _ and -.")],
    model: Annotated[str | None, typer.Option(help="Score by an artifact, an open_clip folder, or an open_clip name.")] = None,
    captions: Annotated[Literal["best", "mean"], typer.Option(help="Which caption's cosine counts, with --model.")] = "best",
    against: Annotated[
        list[str] | None, typer.Option(metavar="CORPUS", help="With --model: the cosine to the most similar image there.")
    ] = None,
    phash: Annotated[bool, typer.Option("--phash", help="Perceptual hashes, for near duplicates; name the column phash.")] = False,
    callable: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Your function: a list of rows in, as many numbers out.")
    ] = None,
    actors: Annotated[int | None, typer.Option(min=1, help="Workers; by default one a GPU, or one a CPU.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; by default a local Ray.")] = None,
    json: Json = False,
) -> None:
    """Compute a number for each row, on Ray Data.

    Exactly one of --model, --phash and --callable says which. The same command again computes what is missing: after an
    interruption, or after the corpus has grown. `sightline corpus filter` makes a filter of it.

    \b
    Example:
      sightline corpus score corpora/photos phash --phash
      sightline corpus score corpora/photos clip --model ViT-B-32/laion2b_s34b_b79k
      sightline corpus score corpora/photos leak --model runs/clip_small-0123456789ab --against corpora/flickr8k-test
      sightline corpus score corpora/photos blur --callable my_scores:sharpness
    """
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.curate.filters import PHASH
    from sightline.pipelines.curate.score import commit_score, unscored

    if phash and name != PHASH:
        raise ValueError(f"look-alikes are found by the column {PHASH}; write `sightline corpus score {corpus} {PHASH} --phash`")
    opened, scorer = Corpus.open(corpus), chosen(model, captions, against or [], phash, callable)
    todo = unscored(opened, name, scorer)
    if todo:  # Ray takes seconds to start; a finished column need not wait for it
        from sightline.infra.session import ray_session
        from sightline.pipelines.curate import job

        with ray_session(address or settings.ray_address(), debug=settings.debug()), stages_bar() as progress:
            info = job.score(opened, name, scorer, actors=actors, progress=progress)
    else:
        info = commit_score(opened, name, scorer)
    shown = {"column": name, "corpus": corpus, "kind": info.kind, "rows": info.rows, **info.counts, "shards_computed": len(todo)}
    emit(shown | asdict(info), json, facts(shown))


def chosen(model: str | None, captions: Literal["best", "mean"], against: list[str], phash: bool, callable: str | None) -> Scorer:
    """The one scorer that is asked for.

    Raises:
        ValueError: none is, or several are, or it cannot be had.
    """
    from sightline.pipelines.curate.scorers import PerceptualHash, clip_score, nearest, own_score

    if sum((model is not None, phash, callable is not None)) != 1:
        raise ValueError("which score? give exactly one of --model MODEL, --phash and --callable MODULE:FUNCTION")
    if against and model is None:
        raise ValueError("--against compares embeddings; give --model MODEL too")
    if phash:
        return PerceptualHash()
    if callable is not None:
        return own_score(callable)
    assert model is not None
    return nearest(model, against) if against else clip_score(model, captions)
