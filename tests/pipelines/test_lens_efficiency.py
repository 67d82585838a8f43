"""Scores over samples seen: read from what training writes, compared as plain arithmetic says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import Evaluation
from sightline.pipelines.lens.efficiency import Run, differing, labels, look, read, samples_to_reach, slowest, together
from sightline.pipelines.train import validate
from sightline.pipelines.train.checkpoints import Checkpoint, write_atomically
from sightline.pipelines.train.loop import train
from sightline.pipelines.train.spec import Launch, RunSpec, canonical_json, resolve
from sightline.recipes import find_recipe
from tests.conftest import InlineCommandLine
from tests.processes import on_ranks

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("matplotlib")

ROOT = "ab" * 32
Scored = Callable[..., Path]
RANDOM = np.random.default_rng(0)


def spec_of(recipe: str, root: str = ROOT, batch: int = 100, seed: int = 0) -> RunSpec:
    spec = find_recipe(recipe)
    return replace(spec, data=replace(spec.data, root=root, corpus="somewhere"), global_batch=batch, seed=seed)


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scored:
    """`scored(spec, {step: top1})`: a run's folder as training leaves it, but that nothing is computed."""

    def make(spec: RunSpec, values: Mapping[int, float], images: int = 50, folder: str = "", **others: float) -> Path:
        run_dir = tmp_path / (folder or f"{spec.recipe}-{spec.run_id}")
        run_dir.mkdir(exist_ok=True)
        write_atomically(run_dir / "run.json", canonical_json(asdict(spec)) + "\n")
        launch = Launch(run_dir, evaluate="test")
        monkeypatch.setattr(validate, "Corpus", SimpleNamespace(open=lambda *_: None))
        monkeypatch.setattr(validate, "restore", lambda *_: None)
        for step, value in values.items():
            metrics = {"images": images, "zero_shot_classes": 9, "top1": value, "top5": 1.0, "caption_loss": 2.0, **others}
            evaluation = Evaluation("tiny", "", ROOT, "test", metrics)
            monkeypatch.setattr(validate, "evaluate", lambda *_, found=evaluation: found)
            place = Path(launch.saved_at) / f"step-{step:08d}-abcdef"
            place.mkdir(parents=True, exist_ok=True)
            validate.validate(spec, launch, Checkpoint(str(place), step, 0.0, ""))
        return run_dir

    return make


def test_where_a_line_reaches_a_level_is_where_a_fine_grid_says() -> None:
    for _ in range(20):
        samples = np.sort(RANDOM.choice(np.arange(1, 1000), 6, replace=False))
        values = RANDOM.random(6)
        level = RANDOM.uniform(0, values.max())
        grid = np.linspace(samples[0], samples[-1], 500_001)
        reached = grid[np.flatnonzero(np.interp(grid, samples, values) >= level)[0]]
        assert samples_to_reach(samples.tolist(), values.tolist(), level) == pytest.approx(reached, abs=0.01)


def test_the_slowest_has_the_least_best_and_took_longest_for_it() -> None:
    assert slowest([(0.9, 10.0), (0.4, 5.0), (0.4, 7.0), (0.5, 90.0)]) == 2


def test_a_run_is_read_as_training_left_it(scored: Scored) -> None:
    spec = spec_of("clip_demo")
    folder = scored(spec, {20: 0.2, 10: 0.1})
    with (folder / "validation.jsonl").open("a") as file:
        file.write('{"step": 30, "top1": 0.3, "imag')  # a kill
    scored(spec, {20: 0.25})  # a checkpoint that was made again
    run = read(folder)
    assert run.spec.run_id == spec.run_id and [(step, one["top1"]) for step, one in run.scores.items()] == [(10, 0.1), (20, 0.25)]


def test_contrasting_took_a_quarter_of_the_samples(scored: Scored, tmp_path: Path, cli_inline: InlineCommandLine) -> None:
    # 0.4 is the best of captions, at 4,000 samples; words have it at 2,000 and contrasting, by a straight line, at 1,000.
    folders = [
        scored(spec_of("captions_demo"), {10: 0.1, 20: 0.2, 40: 0.4}),
        scored(spec_of("words_demo"), {10: 0.1, 20: 0.4, 40: 0.5}),
        scored(spec_of("clip_demo"), {5: 0.2, 15: 0.6, 40: 0.55}),
    ]
    done = cli_inline("lens", "efficiency", *folders, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["level"], found["slowest"], found["zero_shot"], found["images"]) == (0.4, "captions_demo", True, 50)
    assert [one["samples_to_level"] for one in found["lines"]] == pytest.approx([4000, 2000, 1000])
    assert [one["times_fewer"] for one in found["lines"]] == pytest.approx([1, 2, 4])
    assert [one["objective"] for one in found["lines"]] == ["prediction", "prediction", "contrastive"]
    assert found["lines"][2]["points"][1] == {"samples": 1500, "mean": 0.6, "low": 0.6, "high": 0.6}
    kept = json.loads((tmp_path / "lens" / "efficiency.json").read_text())
    assert kept["figures"] == ["efficiency.svg"] and "in more than" not in kept["caption"]
    again = look([read(folder) for folder in folders], "top1", tmp_path / "again")
    assert again.figures[0].read_bytes() == (tmp_path / "lens" / "efficiency.svg").read_bytes()
    table = cli_inline("lens", "efficiency", *folders).stdout
    assert "4.0×" in table and "samples to 40.0%" in table


def test_a_first_point_above_the_level_is_a_bound(scored: Scored, tmp_path: Path) -> None:
    runs = [read(scored(spec_of("words_demo"), {10: 0.1, 20: 0.2})), read(scored(spec_of("clip_demo"), {10: 0.3, 20: 0.4}))]
    slow, fast = look(runs, "top1", tmp_path).numbers["lines"]
    assert not slow["at_most"] and fast["at_most"] and fast["samples_to_level"] == 1000 and fast["times_fewer"] == 2


def test_seeds_are_one_line_with_its_range(scored: Scored, tmp_path: Path) -> None:
    curves = ({10: 0.1, 20: 0.5}, {10: 0.2, 20: 0.3, 30: 0.9}, {10: 0.6, 20: 0.4})
    runs = [read(scored(spec_of("clip_demo", seed=seed), values)) for seed, values in enumerate(curves)]
    runs.append(read(scored(spec_of("words_demo"), {10: 0.1})))
    clip, words = look(runs, "top1", tmp_path).numbers["lines"]
    assert clip["seeds"] == [0, 1, 2] and words["seeds"] == [0]
    wanted = [(1000, 0.3, 0.1, 0.6), (2000, 0.4, 0.3, 0.5)]  # nothing is said of a step that one of them lacks
    assert [tuple(point.values()) for point in clip["points"]] == [pytest.approx(point) for point in wanted]
    apart = [read(scored(spec_of("lit_small", seed=seed), {10 + seed: 0.1})) for seed in (0, 1)]
    with pytest.raises(ValueError, match="of the same step"):
        together(apart, "top1")


def test_runs_of_one_recipe_are_named_by_what_differs(scored: Scored, tmp_path: Path) -> None:
    small, large = spec_of("clip_demo"), spec_of("clip_demo", batch=200)
    assert labels([small, large, spec_of("words_demo")]) == [
        "clip_demo, global_batch=100",
        "clip_demo, global_batch=200",
        "words_demo",
    ]
    assert differing([small, large]) == {"global_batch": [100, 200]}
    both = differing([small, spec_of("words_demo", seed=3)])
    assert both["objective.kind"] == ["contrastive", "prediction"] and both["model.text.predicts"] == [None, "words"]
    assert "seed" not in both and "global_batch" not in both
    seen = look([read(scored(spec, {10: 0.1, 20: 0.2})) for spec in (small, large)], "top1", tmp_path)
    assert "differ in more than what they are asked for: global_batch" in seen.caption
    assert [one["points"][0]["samples"] for one in seen.numbers["lines"]] == [1000, 2000]


def test_what_cannot_be_compared_costs_one_line(scored: Scored, tmp_path: Path, cli_inline: InlineCommandLine) -> None:
    good = scored(spec_of("clip_demo"), {10: 0.1})
    copy = scored(spec_of("clip_demo"), {10: 0.1}, folder="copy")
    elsewhere = scored(spec_of("words_demo", root="cd" * 32), {10: 0.1})
    fewer = scored(spec_of("words_demo"), {10: 0.1}, images=20)
    silent = scored(spec_of("captions_demo"), {})
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "run.json").write_text('{"recipe": ')
    for arguments, says in (
        ((good, copy), "the same run"),
        ((good, elsewhere), "name runs of one corpus"),
        ((good, fewer), "50 images"),
        ((good, silent), "with --evaluate SPLIT"),
        ((good, broken), "is damaged"),
        ((good, tmp_path / "nowhere"), "is no run"),
        ((good, "--metric", "beauty"), "--metric may be top1, top5"),
        ((good, "--metric", "caption_loss"), "--metric may be top1, top5"),
    ):
        done = cli_inline("lens", "efficiency", *arguments)
        assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, (arguments, done.stderr)


@pytest.mark.campaign
@pytest.mark.parametrize("recipe", ["clip_demo", "words_demo", "captions_demo"])
def test_every_kind_of_run_has_a_zero_shot_accuracy(recipe: str, digits: Corpus, tmp_path: Path) -> None:
    spec = find_recipe(recipe)
    small = replace(spec, data=replace(spec.data, corpus=digits.location), steps=2, global_batch=24)
    run: Run = trained_and_scored(resolve(small, digits, bf16_available=False), tmp_path)
    assert list(run.scores) == [2] and run.scores[2]["zero_shot_classes"] == 60 and 0 <= run.scores[2]["top1"] <= 1
    assert look([run], "top1", tmp_path).numbers["zero_shot"]


def trained_and_scored(spec: RunSpec, folder: Path) -> Run:
    launch = Launch(folder / "run", evaluate="val")
    launch.run_dir.mkdir()
    write_atomically(launch.run_dir / "run.json", canonical_json(asdict(spec)) + "\n")
    on_ranks(1, folder / "ranks", trained, spec, launch)
    (checkpoint,) = validate.waiting(spec, launch)
    validate.validate(spec, launch, checkpoint)
    return read(launch.run_dir)


def trained(spec: RunSpec, launch: Launch) -> None:
    train(spec, launch, Corpus.open(spec.data.corpus, spec.data.root))
