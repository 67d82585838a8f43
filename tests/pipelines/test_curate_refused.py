"""A filter that cannot be meant is refused in one line with the choices, and images as large as their ingest allowed are scored."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sightline.models import codec
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.curate import scorers
from sightline.pipelines.curate.filters import FilterSpec, make_filter
from sightline.pipelines.curate.rules import RowRules
from sightline.pipelines.curate.scorers import PerceptualHash
from sightline.pipelines.ingest.report import IngestOptions
from tests.conftest import CommandLine, InlineCommandLine
from tests.corpora import ingest_alone


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RowRules(min_side=500, max_side=100), "give a min_side of at most 100"),
        (lambda: RowRules(min_pixels=5, max_pixels=4), "give a min_pixels of at most 4"),
        (lambda: RowRules(min_side=3, max_pixels=8), "more than max_pixels=8 allow"),
        (lambda: FilterSpec(score="x", minimum=1.0, maximum=0.5), "give a lower minimum"),
        (lambda: FilterSpec(distance=3), "--duplicates near or --against"),
        (lambda: FilterSpec(distance=3, duplicates="exact"), "--duplicates near or --against"),
        (lambda: FilterSpec(distance=16, duplicates="near"), "0 to 15"),
    ],
)
def test_conditions_that_no_row_can_hold_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bounds_that_a_row_can_just_hold_are_taken() -> None:
    RowRules(min_side=3, max_side=3, min_pixels=9, max_pixels=9)
    assert FilterSpec(duplicates="near").bits == 6 and FilterSpec(duplicates="near", distance=0).bits == 0


def test_a_format_or_split_that_no_row_has_is_refused_with_those_there_are(digits: Corpus) -> None:
    with pytest.raises(ValueError, match="has the format 'jpg'; give some of jpeg"):
        make_filter(digits, "x", FilterSpec(rows=RowRules(formats=("jpeg", "jpg"))))
    with pytest.raises(ValueError, match="has the split 'trainn'; give some of test, train, val"):
        make_filter(digits, "x", FilterSpec(rows=RowRules(splits=("trainn",))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "jpg"], "give some of jpeg"),
        (["--split", "trainn"], "give some of test, train, val"),
        (["--min-side", "500", "--max-side", "100"], "at most 100"),
        (["--min-side", "5", "--distance", "3"], "--duplicates near"),
    ],
)
def test_the_command_says_so_in_one_line(options: list[str], message: str, cli: CommandLine, digits: Corpus) -> None:
    done = cli("corpus", "filter", digits.location, "x", *options)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")
    assert message in done.stderr


def test_an_image_is_scored_if_its_own_ingest_let_it_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source" / "cat").mkdir(parents=True)
    image = io.BytesIO()
    Image.new("RGB", (40, 30)).save(image, "PNG")
    (tmp_path / "source" / "cat" / "a.png").write_bytes(image.getvalue())
    ingest_alone(tmp_path / "source", tmp_path / "corpus", IngestOptions(max_pixels=1_200))
    asked: list[int] = []

    def decode_rgb(data: bytes | memoryview, *, max_pixels: int) -> object:
        asked.append(max_pixels)
        return codec.decode_rgb(data, max_pixels=max_pixels)

    monkeypatch.setattr(scorers, "decode_rgb", decode_rgb)
    corpus = Corpus.open(tmp_path / "corpus")
    assert PerceptualHash().load("cpu")(corpus, range(1)).null_count == 0
    assert asked == [corpus.max_pixels] == [1_200]


def test_conditions_are_called_as_their_options(digits: Corpus) -> None:
    info = make_filter(digits, "named", FilterSpec(rows=RowRules(formats=("jpeg",), splits=("train",))))
    assert {name for name in info.counts if name.startswith("cost/")} == {"cost/format", "cost/split"}
    assert json.loads(json.dumps(info.rule)) == {"formats": ["jpeg"], "splits": ["train"]}


def test_perceptual_hashes_have_one_name(cli_inline: InlineCommandLine, digits: Corpus) -> None:
    refused = cli_inline("corpus", "score", digits.location, "looks", "--phash")
    assert refused.exit_code == 2
    assert f"write `sightline corpus score {digits.location} phash --phash`" in refused.stderr
