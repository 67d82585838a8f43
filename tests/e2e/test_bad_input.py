"""Each mistake costs one line that names the remedy, exit status 2, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import CommandLine, InlineCommandLine
from tests.corpora import digits_source, ingest_alone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return ingest_alone(digits_source(folder / "source", train=40, val=2, test=12), folder / "corpus")


MISTAKES = {
    "a missing folder": (["ingest", "no-such-folder", "out"], "no-such-folder"),
    "a destination that is a file": (["ingest", "digits", "a-file"], "a-file is a file; give a folder"),
    "no CPUs": (["ingest", "digits", "out", "--cpus", "0"], "--cpus"),
    "no rows in a shard": (["ingest", "digits", "out", "--shard-rows", "0"], "--shard-rows"),
    "a limit above Pillow's": (["ingest", "digits", "out", "--max-megapixels", "500"], "--max-megapixels"),
    "no time to download": (["ingest", "digits", "out", "--timeout", "-3"], "--timeout"),
    "an unknown recipe": (["train", "no_such_recipe", "corpus={corpus}"], "choose clip_demo, clip_small, lit_small"),
    "a recipe without a corpus": (["train", "clip_demo"], "give corpus=PATH"),
    "no corpus": (["train", "clip_demo", "corpus=empty"], "write one with `sightline ingest"),
    "an unknown setting": (["train", "clip_demo", "corpus={corpus}", "colour=red"], "settings are"),
    "a value of the wrong type": (["train", "clip_demo", "corpus={corpus}", "steps=many"], "valid integer"),
    "no assignment": (["train", "clip_demo", "corpus={corpus}", "steps"], "write key=value"),
    "a batch larger than the corpus": (["train", "clip_demo", "corpus={corpus}"], "fewer than one global batch"),
    "an unknown split": (["train", "clip_demo", "corpus={corpus}", "split=dev"], "train"),
    "a locked tower without weights": (["train", "lit_small", "corpus={corpus}", "global_batch=8"], "model.pretrained_image=PATH"),
    "missing pretrained weights": (
        ["train", "lit_small", "corpus={corpus}", "global_batch=8", "pretrained_image=absent.safetensors"],
        "absent.safetensors",
    ),
    "an unknown split to evaluate": (
        ["train", "clip_demo", "corpus={corpus}", "global_batch=8", "--evaluate", "dev"],
        "has no split",
    ),
    "no model": (["evaluate", "no-such-model", "{corpus}"], "give an artifact folder"),
    "two evaluations at once": (["evaluate", "x", "{corpus}", "--segmentation", "--few-shot"], "give one of them"),
    "held-out classes of nothing": (["evaluate", "x", "{corpus}", "--held-out", "car"], "go with --segmentation or --open-set"),
    "options of masks without masks": (["evaluate", "x", "{corpus}", "--masks", "threshold=0.3"], "goes with --segmentation"),
    "a figure of nothing": (["evaluate", "x", "{corpus}", "--figure", "curve.svg"], "the curve of --few-shot"),
    "a folder that is no artifact": (["evaluate", "empty", "{corpus}"], "give an artifact folder"),
    "a model that cannot be served": (["serve", "empty", "--port", "18471"], "give an artifact folder"),
    "an unknown verb to submit": (["submit", "--", "fly"], "train"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_costs_one_line(mistake: str, cli_inline: InlineCommandLine, tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").touch()
    digits_source(tmp_path / "digits", train=4, val=2, test=2)
    arguments, remedy = MISTAKES[mistake]
    done = cli_inline(*(argument.format(corpus=corpus) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert remedy in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("ingest", "no-such-folder", "out"), ("train", "no_such_recipe", "corpus=x")])
def test_as_a_process_it_is_one_line_too(arguments: tuple[str, ...], cli: CommandLine, tmp_path: Path) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"sightline {arguments[0]}: ") and not list(tmp_path.iterdir())


@pytest.mark.campaign
def test_more_workers_than_pairs_in_a_batch(cli: CommandLine, tmp_path: Path, corpus: Path) -> None:
    done = cli("train", "clip_demo", f"corpus={corpus}", "global_batch=1", "--workers", "2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "gives 2 workers nothing to do; give --workers 1" in done.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("table", "remedy"),
    [("picture,words\na.jpg,hello\n", "image"), ("image,caption\n", "captions.csv has no rows"), ("", "captions.csv")],
)
def test_a_table_that_does_not_fit_names_what_is_expected(
    table: str, remedy: str, cli_inline: InlineCommandLine, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "captions.csv").write_text(table)
    done = cli_inline("ingest", "source", "out")
    assert done.exit_code == 2 and remedy in done.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_row_of_json_comes_last(cli: CommandLine) -> None:
    done = cli("sample", "digits", "--train", "40", "--val", "2", "--test", "8", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["train"] == 40
