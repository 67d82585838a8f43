"""The lenses `receptive-field` and `erf` as a person runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sightline.models.artifact import Artifact, write
from sightline.models.lenses.erf import measure
from sightline.models.lenses.receptive_field import unit_gradient
from sightline.models.lenses.subject import load_subject
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.lens.erf import Part, compute, part_of, profile, report
from sightline.pipelines.lens.images import batches, spread
from tests.conftest import InlineCommandLine

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = ("timm/test_resnet", "timm/test_vit")


def test_fields_of_a_convolutional_network(cli_inline: InlineCommandLine, tmp_path: Path) -> None:
    done = cli_inline("lens", "receptive-field", "torchvision/resnet18", "--seed", 0, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    by_name = {row["layer"]: row for row in found["layers"]}
    assert by_name["layer4.1.conv2"]["size"] == 435 and by_name["layer4.1.conv2"]["stride"] == 32
    assert by_name["avgpool"]["size"] is None and found["without_closed_form"] == ""
    assert (tmp_path / "lens" / "receptive-field.svg").read_text().startswith("<?xml")
    assert json.loads((tmp_path / "lens" / "receptive-field.json").read_text())["numbers"]["layers"] == found["layers"]


def test_fields_of_attention_are_found_by_gradient(cli_inline: InlineCommandLine) -> None:
    done = cli_inline("lens", "receptive-field", "timm/test_vit", "--seed", 0, "--json")
    found = json.loads(done.stdout)
    assert found["without_closed_form"] and {row["size"] for row in found["layers"]} == {found["image"]}


def test_fields_of_attention_are_not_those_of_its_stem(cli_inline: InlineCommandLine) -> None:
    """It can be traced, and a stem in closed form says nothing of the blocks."""
    found = json.loads(cli_inline("lens", "receptive-field", "torchvision/swin_t", "--seed", 0, "--json").stdout)
    assert "attend" in found["without_closed_form"] and len(found["layers"]) > 4
    assert found["layers"][-1]["size"] == found["image"]


@pytest.mark.usefixtures("ray_local")
def test_fields_of_two_models_over_seeds(cli_inline: InlineCommandLine, tmp_path: Path) -> None:
    """On Ray as in a plain loop; the same command again computes nothing, and draws the same bytes."""
    verb = ("lens", "erf", *MODELS, "--seeds", 3, "--no-trained", "--images", 2, "--json")
    done = cli_inline(*verb)
    assert done.exit_code == 0, done.stderr
    fields = json.loads(done.stdout)["fields"]
    assert [(one["model"], one["weights"]) for one in fields] == [(model, "random, 3 seeds") for model in MODELS]
    for model, one in zip(MODELS, fields, strict=True):
        squares = np.zeros(())
        for seed in range(3):
            subject = load_subject(model, seed=seed)
            for images in batches(None, None, 2, subject.preprocess, seed):
                squares = squares + unit_gradient(subject.tower, one["layer"], images)[0].double().square().sum((0, 1)).numpy()
        wanted = measure(np.sqrt(squares / squares.max()))
        assert one["sigma"] == pytest.approx(wanted.sigma, rel=1e-4) and one["area"] == wanted.area
    drawn = (tmp_path / "lens" / "erf.svg").read_bytes()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "lens" / "parts").iterdir()}
    assert len(kept) == 6 and cli_inline(*verb).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "lens" / "parts").iterdir()} == kept
    assert (tmp_path / "lens" / "erf.svg").read_bytes() == drawn


@pytest.mark.usefixtures("ray_local")
def test_what_cannot_be_looked_at_costs_one_line(cli_inline: InlineCommandLine) -> None:
    for arguments, says in (
        (("erf", "timm/test_resnet", "--no-trained"), "--seeds"),
        (("erf", "timm/test_resnet", "--seeds", 1, "--no-trained", "--layer", "nowhere"), "choose from"),
        (("receptive-field", "timm/no_such_net", "--seed", 1), "nearest are"),
        (("receptive-field", "no/such/model"), "there is no model"),
        (("receptive-field", "timm/test_resnet", "--weights", "nowhere.safetensors"), "nowhere.safetensors"),
    ):
        done = cli_inline("lens", *arguments)
        assert done.exit_code == 2 and says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_images_are_spread_over_a_split(digits: Corpus) -> None:
    rows = digits.select("train")
    assert spread(digits, "train", 3) == [int(rows[0]), int(rows[round((len(rows) - 1) / 2)]), int(rows[-1])]
    preprocess = load_subject("timm/test_resnet", seed=0).preprocess
    found = torch.cat(list(batches(digits, "train", 10, preprocess)))
    assert len(found) == min(10, len(rows)) and found.shape[1:] == (3, preprocess.size, preprocess.size)


def of_classifier(folder: Path) -> str:
    """A run with the artifact of a small convolutional classifier."""
    vision = {"timm_model_name": "sightline_ladder", "rung": 12, "scale": 0.0625, "batch_norm": False, "depths": (1, 1, 1, 1)}
    config = ModelConfig(embed_dim=0, vision=vision, text={}, preprocess=Preprocess(size=64), classes=("cat", "dog"))
    torch.manual_seed(0)
    write(folder / "artifact", Artifact(folder.name, config, config.classes, {}), build(config).state_dict(), [])
    return str(folder)


def seen_of(parts: list[Part], folder: Path) -> tuple[list[dict[str, Any]], str]:
    seen = report(parts, [compute(part) for part in parts], folder)
    return seen.numbers["fields"], seen.figures[0].read_text()


def test_before_and_after_training_stand_side_by_side(tmp_path: Path) -> None:
    """Two runs of one name are not taken for each other, and what is compared is a model with itself."""
    parts: list[Part] = []
    for parent in ("one", "other"):
        run = of_classifier(tmp_path / parent / "run-0123")
        parts += [part_of(run, seed=seed, images=2) for seed in range(2)] + ([part_of(run, images=2)] if parent == "other" else [])
    fields, figure = seen_of(parts, tmp_path / "lens")
    random = ("run-0123", "random, 2 seeds")
    assert [(one["model"], one["weights"]) for one in fields] == [random, random, ("run-0123", "its own")]
    assert all(one["theoretical"] == fields[0]["theoretical"] > 64 for one in fields)
    _, before, after = fields
    assert "grows" not in before
    assert after["grows"] == {name: pytest.approx(after[name] / before[name]) for name in ("side", "sigma")}
    assert re.search(r"<!-- .*×\d", figure), "and the figure says so"
    assert seen_of(parts, tmp_path / "again")[1] == figure


def test_attention_has_the_whole_image_for_its_field(tmp_path: Path) -> None:
    (one,), figure = seen_of([part_of("timm/test_vit", seed=0, images=1)], tmp_path)
    assert one["theoretical"] is None and one["weights"] == "random, 1 seed" and "the whole image" in figure


def test_a_part_is_known_by_its_artifact_alone(tmp_path: Path) -> None:
    """Not by the checkpoints that lie beside it."""
    run = of_classifier(tmp_path / "run")
    before = part_of(run)
    (tmp_path / "run" / "checkpoint.json").write_text("{}")
    assert part_of(run).key == before.key
    (tmp_path / "run" / "artifact" / "artifact.json").write_text("{}")
    assert part_of(run).key != before.key


def test_a_profile_is_the_cut_through_the_centre() -> None:
    """Of a Gaussian, that of its rows: e^(−x²/2σ²), whose height the band does not change."""
    y, x = np.mgrid[:64, :64]
    field = np.exp(-((y - 30) ** 2 + (x - 40) ** 2) / (2 * 6.0**2))
    across, size = profile(field)
    assert across[40] == pytest.approx(0, abs=0.01) and np.allclose(size, np.exp(-(across**2) / (2 * 6.0**2)), atol=1e-3)
