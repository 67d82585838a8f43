"""Scores: a model's against one image at a time, a user's own, thresholds, and the same numbers from Ray's actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sightline.models.codec import decode_rgb
from sightline.models.load import load_model
from sightline.pipelines.corpus.columns import columns, read_column, read_mask
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Row, make_row
from sightline.pipelines.curate.filters import FilterSpec, make_filter
from sightline.pipelines.curate.score import MAX_ATTEMPTS, count_attempt, forget_attempts, score_alone, unscored
from sightline.pipelines.curate.scorers import clip_score, nearest, own_score
from sightline.pipelines.train.spec import canonical_json, from_json, override, resolve, select_rows
from sightline.recipes import find_recipe
from tests.pipelines.test_columns import corpus_of
from tests.pipelines.test_curate import picture

HERE = "tests.pipelines.test_curate_scores"


def words(rows: Sequence[Row]) -> list[float | None]:
    """A user's score: how many words the captions have."""
    return [float(sum(len(text.split()) for text in row.captions)) or None for row in rows]


def too_few(rows: Sequence[Row]) -> list[float]:
    return [1.0]


def captioned(count: int) -> list[Row]:
    texts = [tuple(f"a {('red', 'blue', 'grey')[i % 3]} picture {j}" for j in range(i % 4)) for i in range(count)]
    return [
        make_row(key=f"{i:02d}", image=picture(i), format="jpeg", width=64, height=64, captions=text, extra='{"split":"train"}')
        for i, text in enumerate(texts)
    ]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return corpus_of(tmp_path / "corpus", captioned(30), 10)


@pytest.mark.parametrize("captions", ["best", "mean"])
def test_a_clip_score_is_the_cosine_of_each_image_alone(captions: str, corpus: Corpus, artifact: Path) -> None:
    info = score_alone(corpus, "clip", clip_score(str(artifact), captions))  # type: ignore[arg-type]
    model = load_model(str(artifact))
    found = read_column(corpus, "clip").to_pylist()
    for row in range(corpus.rows):
        image_D = model.embed_images(model.preprocess.pixels(decode_rgb(corpus.image(row)))[None])[0]
        cosines = [float(model.embed_texts([text])[0] @ image_D) for text in corpus.captions(row)]
        if not cosines:
            assert found[row] is None
        else:
            assert found[row] == pytest.approx(max(cosines) if captions == "best" else sum(cosines) / len(cosines), abs=1e-5)
    assert info.counts == {"scored": 22, "null": 8}
    assert info.rule == {"captions": captions, "revision": model.revision}


def test_similarity_to_other_images_finds_copies(corpus: Corpus, artifact: Path, tmp_path: Path) -> None:
    judged = corpus_of(tmp_path / "eval", [make_row(key="x", image=bytes(corpus.image(7)), format="jpeg", width=64, height=64)])
    score_alone(corpus, "leak", nearest(str(artifact), [judged.location]))
    values = read_column(corpus, "leak").to_numpy()
    model = load_model(str(artifact))
    pixels = torch.stack([model.preprocess.pixels(decode_rgb(corpus.image(row))) for row in range(corpus.rows)])
    embeddings = model.embed_images(pixels)
    assert np.allclose(values, (embeddings @ embeddings[7]).numpy(), atol=1e-5)
    assert values[7] == pytest.approx(1, abs=1e-5)


def test_thresholds_and_the_best_share_are_a_sort(corpus: Corpus) -> None:
    score_alone(corpus, "words", own_score(f"{HERE}:words"))
    values = read_column(corpus, "words").to_pylist()
    make_filter(corpus, "some", FilterSpec(score="words", minimum=5, maximum=8))
    assert read_mask(corpus, "some").tolist() == [value is not None and 5 <= value <= 8 for value in values]
    for top in (0.1, 0.3, 1.0):
        make_filter(corpus, "good", FilterSpec(score="words", top=top))
        scored = [row for row in range(corpus.rows) if values[row] is not None]
        order = sorted(scored, key=lambda row: (-(values[row] or 0), corpus.row(row).uid))
        assert np.flatnonzero(read_mask(corpus, "good")).tolist() == sorted(order[: round(top * corpus.rows)])


def test_only_what_is_missing_is_scored_again(corpus: Corpus) -> None:
    scorer = own_score(f"{HERE}:words")
    score_alone(corpus, "words", scorer)
    assert unscored(corpus, "words", scorer) == []
    more = [replace(row, key=f"more {row.key}") for row in captioned(15)]
    grown = corpus_of(Path(corpus.location), more, 10, change="append")
    assert [part.start for part in unscored(grown, "words", scorer)] == [30, 40]
    edited = replace(scorer, source_sha256="0" * 64)
    assert len(unscored(grown, "words", edited)) == 5


def test_a_function_that_does_not_fit_is_refused(corpus: Corpus) -> None:
    for name in ("nothing", "no_module:x", f"{HERE}:absent", f"{HERE}:HERE"):
        with pytest.raises(ValueError, match="module:function"):
            own_score(name)
    with pytest.raises(ValueError, match="1 values for 10 rows"):
        score_alone(corpus, "x", own_score(f"{HERE}:too_few"))
    assert columns(corpus) == []


def test_training_sees_the_rows_that_pass(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "own", [row for row in captioned(30) if row.captions], 10)
    base = override(find_recipe("clip_demo"), ["global_batch=4", f"corpus={corpus.location}"])
    plain = resolve(base, corpus, bf16_available=False)
    score_alone(corpus, "words", own_score(f"{HERE}:words"))
    make_filter(corpus, "many", FilterSpec(score="words", minimum=8))
    make_filter(corpus, "good", FilterSpec(score="words", top=0.9))
    spec = resolve(override(base, ["filters=many,good"]), corpus, bf16_available=False)
    passing = np.flatnonzero(read_mask(corpus, "many") & read_mask(corpus, "good"))
    assert select_rows(corpus, spec.data)[0].tolist() == passing.tolist()
    assert (spec.data.filters, len(spec.data.view), plain.data.view) == (("many", "good"), 64, "")
    assert spec.run_id != plain.run_id
    assert resolve(override(base, ['filters=["good","many"]']), corpus, bf16_available=False).run_id == spec.run_id
    assert from_json(canonical_json(asdict(spec))) == spec
    make_filter(corpus, "many", FilterSpec(score="words", minimum=10))
    with pytest.raises(ValueError, match="no longer pass the rows"):
        select_rows(corpus, spec.data)
    with pytest.raises(ValueError, match="that pass many"):
        resolve(override(base, ["filters=many", "global_batch=30"]), corpus, bf16_available=False)


def test_an_actor_reports_what_the_user_can_mend(corpus: Corpus) -> None:
    from sightline.pipelines.curate.job import ShardScorer

    scorer = own_score(f"{HERE}:too_few")
    parts = {part.index: part for part in unscored(corpus, "x", scorer)}
    answer = ShardScorer(corpus, parts, scorer, "cpu")({"shard": 1})
    assert answer["of_system"] is False and "1 values for 10 rows" in str(answer["failure"])


def test_a_shard_that_kills_its_workers_ends_the_run(corpus: Corpus) -> None:
    part = unscored(corpus, "x", own_score(f"{HERE}:words"))[1]
    for _ in range(MAX_ATTEMPTS):
        count_attempt(corpus, part)
    with pytest.raises(ValueError, match="shard 1 was begun 3 times"):
        count_attempt(corpus, part)
    forget_attempts(corpus, "x")  # another run
    count_attempt(corpus, part)


@pytest.mark.usefixtures("ray_local")
def test_actors_compute_the_same_bits_as_one_process(corpus: Corpus, artifact: Path) -> None:
    from sightline.pipelines.curate import job

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as an actor does
    score_alone(corpus, "alone", clip_score(str(artifact)))
    torch.set_num_threads(threads)
    done: list[tuple[str, int, int]] = []
    info = job.score(corpus, "two", clip_score(str(artifact)), actors=2, progress=lambda *now: done.append(now))
    assert read_column(corpus, "two").equals(read_column(corpus, "alone"))
    assert info.counts == {"scored": 22, "null": 8}
    assert done == [("score", 1, 3), ("score", 2, 3), ("score", 3, 3)]
