"""`sightline export` as a person types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import timm

from tests.conftest import InlineCommandLine
from tests.models.conftest import CONV, VIT
from tests.models.exporting import artifact_of


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with an artifact that every library can hold."""
    artifact_of(VIT, tmp_path / "run" / "artifact")
    return tmp_path / "run"


def test_an_export_prints_how_to_load_it_and_that_line_works(run: Path, tmp_path: Path, cli_inline: InlineCommandLine) -> None:
    for target in ("open_clip", "timm"):
        done = cli_inline("export", run, tmp_path / target, "--to", target, "--json")
        assert done.exit_code == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["image_difference"] <= 1e-6
        names: dict[str, object] = {"open_clip": open_clip, "timm": timm}
        exec(result["load"], names)
        assert "model" in names
    assert json.loads((tmp_path / "timm" / "sightline.json").read_text())["artifact"]["name"] == "tiny"


def test_for_a_person_the_differences_are_named(run: Path, tmp_path: Path, cli_inline: InlineCommandLine) -> None:
    done = cli_inline("export", run, tmp_path / "out", "--to", "timm")
    assert done.exit_code == 0
    assert "image embeddings differ by" in done.stdout and "no text tower there" in done.stdout


def test_the_other_libraries_are_described_in_the_help(cli_inline: InlineCommandLine) -> None:
    done = cli_inline("export", "--help")
    assert "Example:" in done.stdout and 'pip install "sightline[onnx]"' in done.stdout


def test_mistakes_are_one_line_and_leave_no_folder(run: Path, tmp_path: Path, cli_inline: InlineCommandLine) -> None:
    artifact_of(CONV, tmp_path / "words")
    (tmp_path / "there").mkdir()
    cases = {
        ("words", "out", "--to", "open_clip"): "bag of words; this artifact can be exported --to onnx",
        ("words", "out", "--to", "timm"): "sightline_conv is not among timm's own models",
        ("run", "there", "--to", "timm"): "name a new folder, or delete it first",
        ("absent", "out", "--to", "timm"): "is no artifact: it has no artifact.json",
        ("there", "out", "--to", "timm"): "is no artifact: it has no artifact.json",
    }
    for arguments, message in cases.items():
        done = cli_inline("export", *arguments)
        assert done.exit_code == 2, arguments
        assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    weights = run / "artifact" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is damaged or missing" in cli_inline("export", "run", "out", "--to", "timm").stderr
    assert cli_inline("export", "run", "out", "--to", "tensorflow").exit_code == 2
    shutil.rmtree(tmp_path / "there")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "words"}
