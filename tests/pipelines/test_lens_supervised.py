"""Zero-shot beside linear probes: the intervals against formulas and draws, the figures as a person asks for them."""

from __future__ import annotations

import json
import shlex
import shutil
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from sklearn.linear_model import LogisticRegression

from sightline.cli import lens
from sightline.models.artifact import Artifact, write
from sightline.models.load import load_model
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate.evaluate import Evaluation
from sightline.pipelines.evaluate.few_shot import Point, hits, probe
from sightline.pipelines.evaluate.protocols import FewShot, evaluate_few_shot
from sightline.pipelines.lens.supervised import averaged, examples_to_match, look, matched, names, of_shots, paired, wilson
from tests.conftest import InlineCommandLine
from tests.corpora import ingest_alone

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("matplotlib")

RANDOM = np.random.default_rng(0)
Z = 1.959963984540054


def answers(right: int, rows: int) -> np.ndarray:
    return np.arange(rows) < right


@pytest.mark.parametrize(("right", "rows"), [(0, 10), (7, 10), (10, 10), (333, 1000), (1, 1)])
def test_the_interval_of_a_share_is_wilsons(right: int, rows: int) -> None:
    share = right / rows
    middle = (share + Z**2 / (2 * rows)) / (1 + Z**2 / rows)
    half = Z / (1 + Z**2 / rows) * sqrt(share * (1 - share) / rows + Z**2 / (4 * rows**2))
    assert wilson(answers(right, rows)) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_the_interval_of_a_difference_is_that_of_pairs() -> None:
    rows = 600
    hard = RANDOM.random(rows)
    first, second = hard < RANDOM.normal(0.7, 0.1, rows), hard < RANDOM.normal(0.55, 0.1, rows)
    difference, low, high = paired(first, second)
    assert difference == pytest.approx(first.mean() - second.mean())
    drawn = RANDOM.integers(0, rows, (4000, rows))
    bootstrap = np.percentile(first[drawn].mean(1) - second[drawn].mean(1), [2.5, 97.5])
    assert (low, high) == pytest.approx(bootstrap, abs=0.005)
    apart = sqrt(first.mean() * (1 - first.mean()) / rows + second.mean() * (1 - second.mean()) / rows)
    assert high - low < 0.9 * 2 * Z * apart, "that of two separate sets of rows is wider"
    backward = paired(second, first)
    assert backward == pytest.approx((-difference, -high, -low))


@pytest.mark.parametrize(("both", "first_alone", "second_alone", "neither"), [(12, 9, 2, 7), (0, 5, 0, 0), (3, 0, 0, 3)])
def test_half_a_row_is_added_to_each_cell(both: int, first_alone: int, second_alone: int, neither: int) -> None:
    cells = [(True, True)] * both + [(True, False)] * first_alone + [(False, True)] * second_alone + [(False, False)] * neither
    first, second = np.array(cells).T
    _, low, high = paired(first, second)
    # The variance of a mean of -1, 0 and 1 that have these shares.
    values, weights = np.array([0, 1, -1, 0]), np.array([both, first_alone, second_alone, neither]) + 0.5
    mean = np.average(values, weights=weights)
    half = Z * sqrt(np.average((values - mean) ** 2, weights=weights) / weights.sum())
    assert (low, high) == pytest.approx((max(-1, mean - half), min(1, mean + half)))
    assert low < high


def test_where_a_curve_meets_zero_shot_is_where_a_fine_grid_says() -> None:
    shots = [1, 2, 4, 8, 16]
    grid = np.linspace(0, 4, 400_001)
    for _ in range(20):
        means = np.sort(RANDOM.random(5)) if RANDOM.random() < 0.7 else RANDOM.random(5)
        zero_shot = RANDOM.uniform(0, 1)
        there = np.flatnonzero(np.interp(grid, np.arange(5), means) >= zero_shot)
        found = examples_to_match(shots, means.tolist(), zero_shot)
        if len(there) and there[0] > 0:
            assert found == pytest.approx(2 ** grid[there[0]], rel=1e-4)
        else:
            assert found is None
    assert examples_to_match(shots, [0.5, 0.6, 0.6, 0.6, 0.6], 0.5) == 1
    assert examples_to_match(shots, [0.1, 0.2, 0.3, 0.4, 0.5], 0.5) == 16
    for zero_shot, says in ((0.05, "fewer than 1"), (0.9, "more than 2"), (0.3, "1.4")):
        assert matched(of_shots([Point(1, (0.2,)), Point(2, (0.4,))], zero_shot)) == says


def test_an_average_over_corpora_is_one_by_draw_at_their_common_shots() -> None:
    one, two = [Point(1, (0.1, 0.3)), Point(2, (0.4, 0.6))], [Point(1, (0.5, 0.1))]
    (average,) = averaged([one, two])
    assert average.shots == 1 and average.accuracies == pytest.approx((0.3, 0.2))


def test_corpora_of_the_same_name_are_told_apart() -> None:
    assert names(["/a/birds", "/a/pets/"]) == ["birds", "pets"]
    assert names(["/a/x/pets", "/b/x/pets", "s3://c/cars"]) == ["a/x/pets", "b/x/pets", "/c/cars"]
    with pytest.raises(ValueError, match="named twice"):
        names(["/a/pets", "/a/pets/"])


def test_hits_are_the_probes() -> None:
    train_N, test_N = RANDOM.integers(0, 3, 60), RANDOM.integers(0, 3, 50)
    train_ND, test_ND = (np.eye(3)[some] + RANDOM.normal(0, 0.7, (len(some), 3)) for some in (train_N, test_N))
    plain = LogisticRegression(C=100, max_iter=2000).fit(train_ND, train_N)
    right = hits(train_ND, train_N, test_ND, test_N)
    np.testing.assert_array_equal(right, plain.predict(test_ND) == test_N)
    assert probe(train_ND, train_N, test_ND, test_N) == pytest.approx(plain.score(test_ND, test_N)) and 0.4 < right.mean() < 1


def test_the_same_numbers_draw_the_same_bytes(tmp_path: Path) -> None:
    def some(zero_shot: int, everything: int, rows: int) -> FewShot:
        points = [Point(n, tuple(0.1 + 0.1 * n + 0.01 * i for i in range(3))) for n in (1, 2, 4)]
        metrics: dict[str, float] = {"classes": 3, "train_rows": 99, "test_rows": rows}
        evaluation = Evaluation("tiny", "0" * 64, "1" * 64, "test", metrics)
        return FewShot(evaluation, points, answers(everything, rows), answers(zero_shot, rows))

    found = {"pets": some(40, 90, 100), "cars": some(50, 20, 50)}
    seen = [look(found, tmp_path / folder) for folder in ("one", "two")]
    assert [path.name for path in seen[0].figures] == ["supervised.svg", "supervised-shots.svg"]
    for first, second in zip(*(one.figures for one in seen), strict=True):
        assert first.read_bytes() == second.read_bytes()
    average = seen[0].numbers["average"]
    assert (average["zero_shot"], average["linear_probe"]) == pytest.approx((0.7, 0.65))
    # Both corpora have the same curve, 0.11 + 0.1 n, and 0.51 is its end.
    assert average["examples_to_match"] is None and "more than 4 examples" in seen[0].caption


def test_two_corpora_as_a_person_compares_them(
    cli_inline: InlineCommandLine, digits: Corpus, artifact: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / Path(digits.location).name
    shutil.copytree(digits.location, other)
    command = ("lens", "supervised", artifact, digits.location, other, "--shots", "1,2", "--seeds", 1)
    done = cli_inline(*command, "--json")
    assert done.exit_code == 0, done.stderr
    shown = json.loads(done.stdout)
    first, second = shown["corpora"]
    assert first["corpus"] != second["corpus"] and first["corpus"].endswith("/corpus") and second["corpus"] == "other/corpus"
    assert {name: value for name, value in first.items() if name != "corpus"} == {
        name: value for name, value in second.items() if name != "corpus"
    }, "the same rows at another place"
    found = evaluate_few_shot(load_model(str(artifact)), digits, shots=(1, 2), seeds=1)
    metrics = found.evaluation.metrics
    assert first["test_rows"] == metrics["test_rows"] == len(found.zero_shot_N) == len(found.everything_N)
    assert first["zero_shot"]["mean"] == metrics["zero_shot"] and first["linear_probe"]["mean"] == metrics["linear_probe"]
    assert first["zero_shot"]["low"] < first["zero_shot"]["mean"] < first["zero_shot"]["high"]
    points = 100 * (metrics["zero_shot"] - metrics["linear_probe"])
    assert first["zero_shot_minus_probe_points"]["mean"] == pytest.approx(points)
    # A class has one training row; of one draw there is no interval.
    assert shown["average"]["shots"] == [{"shots": 1, "mean": pytest.approx(metrics["1_shot"]), "half_width": None}]
    kept = json.loads((tmp_path / "lens" / "supervised.json").read_text())
    assert kept["figures"] == ["supervised.svg", "supervised-shots.svg"] and "figures 5 and 6" in kept["source"]
    assert all((tmp_path / "lens" / name).exists() for name in kept["figures"])


def test_the_gallery_of_a_dual_encoder_compares_names_with_probes(
    cli_inline: InlineCommandLine, digits: Corpus, artifact: Path, tmp_path: Path
) -> None:
    done = cli_inline("lens", "gallery", artifact, digits.location, "--images", 2, "--json")
    assert done.exit_code == 0, done.stderr
    assert "supervised" in json.loads(done.stdout)["lenses"]
    (kept,) = json.loads((tmp_path / "lens" / "supervised.json").read_text())["numbers"]["corpora"]
    found = evaluate_few_shot(load_model(str(artifact)), digits)
    assert (kept["zero_shot"]["mean"], kept["linear_probe"]["mean"]) == (found.zero_shot, found.everything)
    few = evaluate_few_shot(load_model(str(artifact)), digits, shots=(1,), seeds=1, at_most=25)
    assert 4 <= len(few.zero_shot_N) <= 25 < len(found.zero_shot_N)


def unlabelled(folder: Path, *splits: str) -> Path:
    """A picture in each split, without a label."""
    lines = ["image,caption,split"]
    (folder / "images").mkdir(parents=True)
    for number, split in enumerate(splits):
        Image.new("RGB", (32, 32), (60 * number, 0, 0)).save(folder / "images" / f"{number}.png")
        lines.append(f"{number}.png,a square,{split}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_what_cannot_be_compared_costs_one_line(
    cli_inline: InlineCommandLine, digits: Corpus, artifact: Path, tmp_path: Path
) -> None:
    bare = ingest_alone(unlabelled(tmp_path / "bare", "train", "test"), tmp_path / "unlabelled")
    whole = ingest_alone(unlabelled(tmp_path / "whole", "train", "train"), tmp_path / "train-only")
    config = ModelConfig(0, {"timm_model_name": "test_vit"}, {}, Preprocess(size=32), classes=("a", "b"))
    torch.manual_seed(0)
    write(tmp_path / "classifier", Artifact("sorter", config, ("a", "b"), {}), build(config).eval().state_dict(), [])
    for arguments, says in (
        ((artifact, bare), "ingest a source with labels"),
        ((tmp_path / "classifier", digits.location), "sorter has no embeddings of labels"),
        ((artifact, digits.location, digits.location), "named twice"),
        ((artifact, digits.location, "--shots", "few"), "are no numbers"),
        ((artifact, whole), "scored on another"),
    ):
        done = cli_inline("lens", "supervised", *arguments)
        assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, (arguments, done.stderr)


@pytest.mark.parametrize("name", ["supervised", "efficiency"])
def test_the_examples_in_the_help_parse(name: str) -> None:
    group = typer.main.get_command(lens.app)
    assert isinstance(group, typer.core.TyperGroup)
    command = group.commands[name]
    examples = [line.strip() for line in (command.help or "").splitlines() if line.strip().startswith(f"sightline lens {name}")]
    assert len(examples) == 2
    for example in examples:
        command.make_context(name, shlex.split(example)[3:])
