"""Scoring a corpus shard by shard: what is missing, one shard's values, and the commit. No cluster needed."""

from __future__ import annotations

from sightline.pipelines.corpus.columns import FOLDER, ColumnInfo, Part, commit_column, missing, parts, write_part
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import STAGING, open_store
from sightline.pipelines.curate.scorers import Score, Scorer

MAX_ATTEMPTS = 3


def unscored(corpus: Corpus, name: str, scorer: Scorer) -> list[Part]:
    """The shards that have no values under this rule.

    Raises:
        ValueError: the name is no name of a column.
    """
    return missing(open_store(corpus.location), parts(corpus, name, scorer.rule))


def score_part(corpus: Corpus, part: Part, score: Score) -> None:
    """Compute and write one shard's values."""
    values = score(corpus, part.rows)
    write_part(open_store(corpus.location), part, values, {"scored": len(values) - values.null_count, "null": values.null_count})


def count_attempt(corpus: Corpus, part: Part) -> None:
    """Write down that a shard is begun. Ray Data starts a worker that dies again, for ever if need be.

    Raises:
        ValueError: the shard was begun too often.
    """
    store, attempt = open_store(corpus.location), 1
    while not store.create(f"{STAGING}/{part.file}.attempt-{attempt}", b""):
        attempt += 1
    if attempt > MAX_ATTEMPTS:
        raise ValueError(f"shard {part.index} was begun {MAX_ATTEMPTS} times and its worker died each time; see Ray's logs")


def forget_attempts(corpus: Corpus, name: str) -> None:
    """A run counts its own attempts."""
    open_store(corpus.location).remove_folder(f"{STAGING}/{FOLDER}/{name}")


def commit_score(corpus: Corpus, name: str, scorer: Scorer) -> ColumnInfo:
    return commit_column(corpus, name, scorer.rule, scorer.libraries)


def score_alone(corpus: Corpus, name: str, scorer: Scorer, device: str = "cpu") -> ColumnInfo:
    """Score in this process: what `job.score` does, without its actors."""
    if todo := unscored(corpus, name, scorer):
        score = scorer.load(device)
        for part in todo:
            score_part(corpus, part, score)
    return commit_score(corpus, name, scorer)
