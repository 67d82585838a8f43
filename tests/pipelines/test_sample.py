"""The laws of the embedded corpus, read back from the files by other means than those that wrote them."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from typer.testing import CliRunner

from sightline.cli import app
from sightline.pipelines.sample.glyphs import load_glyphs
from sightline.pipelines.sample.pairs import CLASS_IDS, COLOURS, DIGITS, digit_of, held_out, name_of
from sightline.pipelines.sample.scenes import render
from sightline.pipelines.sample.spec import SPLITS, SampleSpec
from sightline.pipelines.sample.write import SEAL, write_sample

SPEC = SampleSpec(seed=0, train=240, val=60, test=160)
TINY = SampleSpec(seed=3, train=4, val=2, test=4)
PAIR = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(DIGITS)})")


@dataclass(frozen=True)
class Row:
    split: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    captions: list[str]
    labels: list[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("sample") / "digits"
    write_sample(dest, SPEC)
    return dest


@pytest.fixture(scope="module")
def classes(folder: Path) -> dict[int, str]:
    with (folder / "classes.csv").open() as file:
        return {int(row["id"]): row["name"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[Row]:
    return list(read(folder))


def read(folder: Path) -> Iterator[Row]:
    for line in (folder / "captions.jsonl").read_text().splitlines():
        row = json.loads(line)
        image, mask = Image.open(folder / row["image"]), Image.open(folder / row["mask"])
        assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "P")
        yield Row(row["split"], np.asarray(image), np.asarray(mask), row["captions"], row["labels"])


def pairs_said(caption: str) -> set[str]:
    return {" ".join(found) for found in PAIR.findall(caption)}


def centre(row: Row, label: str, classes: dict[int, str]) -> tuple[float, float]:
    """The centre of a label's strokes, (x, y) as shares of the picture."""
    inside = row.mask == next(c for c, name in classes.items() if name == label)
    weights = np.arange(len(inside)) + 0.5
    return (
        float(inside.sum(0) @ weights / inside.sum() / len(inside)),
        float(inside.sum(1) @ weights / inside.sum() / len(inside)),
    )


# What a sample is


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again = write_sample(tmp_path / "a", TINY), write_sample(tmp_path / "b", TINY)
    other = write_sample(tmp_path / "c", replace(TINY, seed=4))
    assert first.digest == again.digest != other.digest
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(names) == 2 * TINY.scenes + 3
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_a_scene_does_not_depend_on_how_many_scenes_there_are() -> None:
    few, many = render(TINY, "test", 3), render(replace(TINY, train=900, test=40), "test", 3)
    assert few.captions == many.captions
    assert np.array_equal(few.image, many.image)
    assert np.array_equal(few.mask, many.mask)


def test_the_digest_covers_the_name_and_the_bytes_of_every_file(folder: Path) -> None:
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != SEAL)
    lines = (f"{name}\0{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n" for name in files)
    assert json.loads((folder / SEAL).read_text())["digest"] == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_the_splits_have_the_scenes_asked_for(rows: list[Row]) -> None:
    assert Counter(row.split for row in rows) == {"train": SPEC.train, "val": SPEC.val, "test": SPEC.test}


@pytest.mark.parametrize("size", [32, 96])
def test_pictures_and_masks_have_the_size_asked_for(tmp_path: Path, size: int) -> None:
    write_sample(tmp_path / "d", replace(TINY, size=size))
    for row in read(tmp_path / "d"):
        assert row.image.shape == (size, size, 3)
        assert row.mask.shape == (size, size)


def test_classes_are_numbered_colour_by_colour_after_the_background(classes: dict[int, str]) -> None:
    expected = ["background", *(f"{c} {d}" for c, d in itertools.product(COLOURS, DIGITS))]
    assert classes == dict(enumerate(expected))


# What training must not see


@pytest.mark.parametrize("seed", range(20))
def test_two_digits_per_colour_are_held_out_and_every_digit_once_or_twice(seed: int) -> None:
    names = [name_of(c).split() for c in held_out(seed)]
    assert Counter(colour for colour, _ in names) == dict.fromkeys(COLOURS, 2)
    assert Counter(Counter(digit for _, digit in names).values()) == {1: 8, 2: 2}


def test_held_out_pairs_are_in_no_label_mask_or_caption_of_train_and_val(
    rows: list[Row], classes: dict[int, str], folder: Path
) -> None:
    hidden = set(json.loads((folder / SEAL).read_text())["held_out"])
    assert hidden == {name_of(c) for c in held_out(SPEC.seed)}
    for row in rows:
        if row.split != "test":
            assert not hidden & set(row.labels)
            assert not hidden & {classes[int(c)] for c in np.unique(row.mask)}
            assert not any(hidden & pairs_said(caption) for caption in row.captions)


def test_the_pixels_of_a_label_have_its_colour_and_the_background_has_none(rows: list[Row], classes: dict[int, str]) -> None:
    hues = {"red": 0, "green": 123, "blue": 225, "yellow": 55, "purple": 284, "cyan": 184}
    for row in rows:
        hue = np.asarray(Image.fromarray(row.image).convert("HSV"))[..., 0].astype(float)
        assert np.median(np.ptp(row.image, axis=2)[row.mask == 0]) < 40  # of 255 between the strongest channel and the weakest
        for label in row.labels:
            angle = np.deg2rad(hue[row.mask == next(c for c, n in classes.items() if n == label)] * 360 / 255)
            shown = np.rad2deg(np.arctan2(np.median(np.sin(angle)), np.median(np.cos(angle))))
            nearest = min(hues, key=lambda colour: abs((shown - hues[colour] + 180) % 360 - 180))
            assert nearest == label.split()[0]


def test_no_scan_serves_two_splits() -> None:
    glyphs = load_glyphs(0)
    scans = {split: np.concatenate([glyphs.scans[split, d] for d in range(10)]) for split in SPLITS}
    assert [len(scans[split]) for split in SPLITS] == [1300, 150, 347]
    assert sorted(np.concatenate(list(scans.values()))) == list(range(1797))


# What a test scene shows


def test_one_digit_test_scenes_show_all_pairs_equally_often(rows: list[Row]) -> None:
    single = Counter(row.labels[0] for row in rows if row.split == "test" and len(row.labels) == 1)
    assert single == {name_of(c): 2 for c in CLASS_IDS}


def test_one_in_four_test_scenes_shows_several_digits(rows: list[Row]) -> None:
    several = [row for row in rows if row.split == "test" and len(row.labels) > 1]
    assert len(several) == SPEC.test / 4
    assert {len(row.labels) for row in several} == {2, 3}


def test_digits_never_trained_on_can_be_read_from_their_masks() -> None:
    def shapes(split: str, count: int) -> tuple[list[NDArray[np.float32]], list[int]]:
        crops, digits = [], []
        for scene in (render(SPEC, split, i) for i in range(count)):  # type: ignore[arg-type]
            if len(scene.labels) == 1:
                picture = Image.fromarray((scene.mask > 0).astype(np.uint8) * 255)
                crop = picture.crop(picture.getbbox()).resize((12, 16), Image.Resampling.BILINEAR)
                crops.append(np.asarray(crop, np.float32).ravel())
                digits.append(digit_of(int(scene.mask.max())))
        return crops, digits

    reader = KNeighborsClassifier(3).fit(*shapes("train", 1500))
    assert reader.score(*shapes("test", 400)) > 0.92


# What captions say


def test_labels_are_the_classes_in_the_mask(rows: list[Row], classes: dict[int, str]) -> None:
    for row in rows:
        assert len(set(row.labels)) == len(row.labels)
        assert {classes[int(c)] for c in np.unique(row.mask)} == {"background", *row.labels}


def test_every_caption_names_every_digit_in_few_lower_case_words(rows: list[Row]) -> None:
    for row in rows:
        assert len(set(row.captions)) == len(row.captions) >= 3
        for caption in row.captions:
            assert pairs_said(caption) == set(row.labels)
            assert re.fullmatch(r"[a-z ,:]+", caption)
            assert len(caption.split()) < 16


def test_position_words_are_true(rows: list[Row], classes: dict[int, str]) -> None:
    places = r"in the (?:upper|lower) (?:left|right)|at the (?:top|bottom)|on the (?:left|right)|near the centre"
    after = re.compile(rf"{PAIR.pattern} ({places})")
    before = re.compile(rf"^({places}), a {PAIR.pattern}$")
    said = Counter[str]()
    for row in rows:
        for caption in row.captions:
            found = [(f"{c} {d}", p) for c, d, p in after.findall(caption)]
            found += [(f"{c} {d}", p) for p, c, d in before.findall(caption)]
            for label, where in found:
                x, y = centre(row, label, classes)
                words = set(where.split())
                sides = (x, words & {"left"}, words & {"right"}), (y, words & {"upper", "top"}, words & {"lower", "bottom"})
                for share, low, high in sides:
                    assert 0 < share < 0.42 if low else 0.58 < share < 1 if high else 0.4 < share < 0.6, caption
                said[where] += 1
    assert len(said) == 9


def test_relations_are_true(rows: list[Row], classes: dict[int, str]) -> None:
    pattern = re.compile(rf"{PAIR.pattern} (above|below|to the left of|to the right of) a {PAIR.pattern}")
    said = Counter[str]()
    for row in rows:
        for caption in row.captions:
            for colour, digit, words, other_colour, other_digit in pattern.findall(caption):
                x, y = centre(row, f"{colour} {digit}", classes)
                other_x, other_y = centre(row, f"{other_colour} {other_digit}", classes)
                gap = {
                    "above": other_y - y,
                    "below": y - other_y,
                    "to the left of": other_x - x,
                    "to the right of": x - other_x,
                }[words]
                assert gap > 0.19, caption
                said[words] += 1
    assert len(said) == 4


def test_size_and_brightness_words_are_true(rows: list[Row]) -> None:
    heights: dict[str, list[int]] = {"a small ": [], "a large ": []}
    tones: dict[str, list[float]] = {"a dark ": [], "a light ": []}
    for row in rows:
        for caption in row.captions:
            for word, found in heights.items():
                if word in caption:
                    found.append(int(np.ptp(np.nonzero(row.mask)[0])) + 1)
            for word, shades in tones.items():
                if word in caption:
                    shades.append(float(row.image[row.mask == 0].mean()) / 255)
    assert max(heights["a small "]) <= 18 < 24 <= min(heights["a large "])
    assert max(tones["a dark "]) < 0.36 < 0.58 < min(tones["a light "])


# What can go wrong


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path / "d", TINY, stop)
    assert not list(tmp_path.iterdir())


def test_a_kill_leaves_no_destination_and_the_same_command_then_succeeds(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys\n"
        "from sightline.pipelines.sample.spec import SampleSpec\n"
        "from sightline.pipelines.sample.write import write_sample\n"
        "stop = lambda done, total: done == 3 and os.kill(os.getpid(), 9)\n"
        "write_sample(pathlib.Path(sys.argv[1]), SampleSpec(train=9, val=0, test=0), stop)\n"
    )
    dest = tmp_path / "d"
    done = subprocess.run([sys.executable, "-c", script, str(dest)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert not dest.exists()
    assert not write_sample(dest, SampleSpec(train=9, val=0, test=0)).reused


def test_a_complete_sample_of_the_same_settings_is_returned_as_it_is(tmp_path: Path) -> None:
    first = write_sample(tmp_path / "d", TINY)
    stamp = (tmp_path / "d" / SEAL).stat().st_mtime_ns
    again = write_sample(tmp_path / "d", TINY)
    assert (again.reused, again.digest) == (True, first.digest)
    assert (tmp_path / "d" / SEAL).stat().st_mtime_ns == stamp


def test_an_empty_folder_may_be_the_destination(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    assert (write_sample(tmp_path / "d", TINY).dest / SEAL).is_file()


def test_what_stands_at_the_destination_is_never_overwritten(tmp_path: Path) -> None:
    write_sample(tmp_path / "sample", TINY)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / SEAL).write_text("[]")
    for name, sentence in {
        "sample": "other settings: delete it or name another",
        "file": "is a file: name a new",
        "file/below": "lies below a file",
        "full": "not empty and holds no sample",
        "alien": "no seal of a sample",
    }.items():
        with pytest.raises(FileExistsError, match=sentence):
            write_sample(tmp_path / name, replace(TINY, seed=9))
    assert (tmp_path / "full" / "mine").read_text() == "mine"


@pytest.mark.parametrize("bad", [{"train": -1}, {"seed": -1}, {"size": 8}, {"train": 0, "val": 0, "test": 0}, {"test": 2_000_000}])
def test_numbers_out_of_range_are_refused_with_the_range(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"give|ask for"):
        SampleSpec(**bad)


def test_the_command_writes_a_sample_and_prints_one_line_of_json(tmp_path: Path) -> None:
    args = ["sample", str(tmp_path / "d"), "--train", "4", "--val", "2", "--test", "4", "--seed", "3", "--json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    values = json.loads(result.stdout.splitlines()[-1])
    assert values["digest"] == json.loads((tmp_path / "d" / SEAL).read_text())["digest"]
    assert (values["train"], values["val"], values["test"], values["reused"]) == (4, 2, 4, False)


def test_the_command_answers_bad_input_in_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["sample", str(tmp_path / "d"), "--train", "-5"])
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines() == ["sightline sample: train is -5: give 0 or more"]
    assert not list(tmp_path.iterdir())
