"""The scoring job on Ray Data: actors that hold the model, and one row for one shard, as in the ingest job.

An actor writes a shard's values under a name that says shard and rule, so a repeated shard has the same file, a lost one
fails the commit, and the same job again computes what is missing. Batches begin with each shard, so numbers do not know
how many actors there were.
"""

from __future__ import annotations

from collections.abc import Callable

import ray.data
import torch

from sightline.pipelines.corpus.columns import ColumnInfo, Part, missing
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.curate.score import commit_score, count_attempt, forget_attempts, score_part, unscored
from sightline.pipelines.curate.scorers import Score, Scorer
from sightline.pipelines.ingest.job import MAX_TASKS, quiet_ray_data


def score(
    corpus: Corpus,
    name: str,
    scorer: Scorer,
    *,
    actors: int | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> ColumnInfo:
    """Write a column of scores, or what is missing of it. The caller has initialised Ray.

    Args:
        actors: how many share the work; None: one a GPU for models where there are GPUs, otherwise one a CPU.

    Raises:
        ValueError: the name is no name of a column, or the scorer refuses; the message says why.
        OSError: a worker could not write.
    """
    todo = unscored(corpus, name, scorer)
    if todo:
        forget_attempts(corpus, name)
        have = ray.cluster_resources()
        gpu = scorer.on_gpu and have.get("GPU", 0) >= 1
        count = max(1, min(actors or int(have.get("GPU" if gpu else "CPU", 1)), len(todo)))
        with quiet_ray_data():
            shards = ray.data.from_items([{"shard": part.index} for part in todo], override_num_blocks=min(len(todo), MAX_TASKS))
            scored = shards.map(
                ShardScorer,
                fn_constructor_args=(corpus, {part.index: part for part in todo}, scorer, "cuda" if gpu else "cpu"),
                compute=ray.data.ActorPoolStrategy(size=count),
                num_cpus=1,
                num_gpus=1 if gpu else None,
            )
            for done, row in enumerate(scored.iter_rows(), start=1):
                if row["failure"]:
                    raise (OSError if row["of_system"] else ValueError)(row["failure"])
                progress("score", done, len(todo))
        forget_attempts(corpus, name)
    return commit_score(corpus, name, scorer)


class ShardScorer:
    """What an actor does: it loads the scorer with its first shard, and scores shards."""

    def __init__(self, corpus: Corpus, parts: dict[int, Part], scorer: Scorer, device: str) -> None:
        self.corpus, self.parts, self.scorer, self.device = corpus, parts, scorer, device
        self.score: Score | None = None
        if device == "cpu":
            torch.set_num_threads(1)  # sums over several threads may differ in their last bits

    def __call__(self, row: dict[str, int]) -> dict[str, object]:
        try:
            part = self.parts[row["shard"]]
            if not missing(open_store(self.corpus.location), [part]):
                return {"failure": "", "of_system": False}  # a task has several shards, and died after this one
            count_attempt(self.corpus, part)
            self.score = self.score or self.scorer.load(self.device)
            score_part(self.corpus, part, self.score)
        except (ValueError, OSError) as error:  # the user's to mend, so no traceback of Ray's around it
            return {"failure": str(error) or type(error).__name__, "of_system": isinstance(error, OSError)}
        return {"failure": "", "of_system": False}
