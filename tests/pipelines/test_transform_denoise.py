"""Non-local means at ingest: pixels against its formula, written out; masks and the names of plans as they are without it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from PIL import Image

from sightline.models.codec import decode_labels, decode_rgb
from sightline.models.lenses import nlmeans
from sightline.models.preprocess import resample, to_CHW
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Rejected, Row
from sightline.pipelines.ingest import denoise as filter_file
from sightline.pipelines.ingest import prepare as prepare_file
from sightline.pipelines.ingest.prepare import Prepared, prepare_append
from sightline.pipelines.ingest.report import IngestOptions
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.item import Item
from sightline.pipelines.ingest.transform import transform
from tests.conftest import InlineCommandLine
from tests.corpora import finish_alone, ingest_alone
from tests.pipelines.sources import put

pytestmark = pytest.mark.usefixtures("one_thread")

Pixels = NDArray[np.uint8]
SIGMA = 10.0


def clean(height: int, width: int) -> Pixels:
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(rows / 9), 128 + 90 * np.cos(columns / 7), 100 + rows + columns]
    return np.stack(waves, axis=2).round().clip(0, 255).astype(np.uint8)


def noisy(height: int, width: int) -> Pixels:
    noise = np.random.default_rng(0).normal(0, SIGMA, (height, width, 3))
    return (clean(height, width) + noise).round().clip(0, 255).astype(np.uint8)


def encoded(pixels: Pixels, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def outcome(image: bytes, *choice: Any, mask: bytes | None = None) -> Row | Rejected:
    files = {"x": image} | ({} if mask is None else {"m": mask})
    item = Item(key="k", image="x", mask=None if mask is None else "m", captions=("a",))
    return transform(item, 0, files.__getitem__, resize=Resize.parse(*choice))


def row(image: bytes, *choice: Any, mask: bytes | None = None) -> Row:
    result = outcome(image, *choice, mask=mask)
    assert isinstance(result, Row), result
    return result


def pixel_by_pixel(rgb_HWC: Pixels, sigma: float) -> Pixels:
    """The formula in float64: patches of 7, neighbours up to 11 away, h = 0.8 σ, the border mirrored."""
    padded = np.pad(rgb_HWC.astype(np.float64), ((14, 14), (14, 14), (0, 0)), mode="reflect")
    patches = sliding_window_view(padded, (7, 7), axis=(0, 1))
    out = np.empty(rgb_HWC.shape)
    for y, x in np.ndindex(*rgb_HWC.shape[:2]):
        near = patches[y : y + 23, x : x + 23]
        distance = ((near - patches[y + 11, x + 11]) ** 2).mean(axis=(2, 3, 4))
        weight = np.exp(-np.maximum(distance - 2 * sigma**2, 0) / (0.8 * sigma) ** 2)
        out[y, x] = (weight[..., None] * near[..., 3, 3]).sum(axis=(0, 1)) / weight.sum()
    return out.round().clip(0, 255).astype(np.uint8)


# --- pixels


def test_every_pixel_is_the_formulas() -> None:
    found = decode_rgb(row(encoded(noisy(19, 16)), "keep", "original", SIGMA).image)
    np.testing.assert_array_equal(found, pixel_by_pixel(noisy(19, 16), SIGMA))
    assert (found != noisy(19, 16)).mean() > 0.5


def test_it_comes_after_scaling_and_before_cutting_and_padding() -> None:
    scaled = resample(to_CHW(noisy(32, 40)), 16, 20).permute(1, 2, 0).numpy()
    filtered = pixel_by_pixel(scaled, 15)
    cut = decode_rgb(row(encoded(noisy(32, 40)), "centre_crop=16x16", "png", 15.0).image)
    np.testing.assert_array_equal(cut, filtered[:, 2:18])
    padded = decode_rgb(row(encoded(noisy(32, 40)), "pad=20x20", "png", 15.0).image)
    np.testing.assert_array_equal(padded[2:18], filtered)
    assert (padded[:2] == 255).all() and (padded[18:] == 255).all()


def test_upright_pixels_are_filtered() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = encoded(noisy(24, 18), exif=exif)
    found = row(image, "keep", "original", SIGMA)
    assert (found.width, found.height) == (24, 18)
    np.testing.assert_array_equal(decode_rgb(found.image), nlmeans.denoise(decode_rgb(image), SIGMA, dtype=torch.float64))


def test_noise_goes() -> None:
    def rms(some: Pixels) -> float:
        return float(np.sqrt(((some.astype(float) - clean(64, 64)) ** 2).mean()))

    found = decode_rgb(row(encoded(noisy(64, 64)), "keep", "original", SIGMA).image)
    assert rms(found) < 0.6 * rms(noisy(64, 64))


@pytest.mark.parametrize(("height", "width"), [(50, 23), (23, 50), (33, 33)])
def test_bands_change_nothing(height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = encoded(noisy(height, width))
    whole = row(image, "keep", "original", SIGMA)
    monkeypatch.setattr(filter_file, "BAND_PIXELS", 16 * min(height, width))  # of 16 rows; of 33, one is left
    assert row(image, "keep", "original", SIGMA) == whole


# --- bytes


@pytest.mark.parametrize(("format", "kept_as"), [("JPEG", "jpeg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "png")])
def test_no_image_keeps_its_bytes_and_each_stays_in_its_format_where_that_can_be_written(format: str, kept_as: str) -> None:
    image = encoded(noisy(20, 20), format)
    found = row(image, "keep", "original", SIGMA)
    assert found.image != image and found.format == kept_as
    assert row(image, "shortest=20", "original", SIGMA).image == found.image


def test_a_mask_stays_what_it_is_without_the_filter() -> None:
    image, mask = encoded(noisy(32, 40)), encoded((np.arange(32 * 40) % 251).astype(np.uint8).reshape(32, 40))
    assert row(image, "keep", "original", SIGMA, mask=mask).mask == mask
    for choice in ("pad=20x20", "shortest=16", "centre_crop=18"):
        with_filter, without = row(image, choice, "png", SIGMA, mask=mask), row(image, choice, "png", mask=mask)
        assert with_filter.mask == without.mask and with_filter.image != without.image
        assert decode_labels(with_filter.mask or b"").shape == (with_filter.height, with_filter.width)


@pytest.fixture
def threads_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many threads torch had whenever something was filtered."""
    seen: list[int] = []

    def watched(*arguments: Any, **options: Any) -> Any:
        seen.append(torch.get_num_threads())
        return plain(*arguments, **options)

    plain = nlmeans.nl_means
    monkeypatch.setattr(nlmeans, "nl_means", watched)
    yield seen


def test_the_number_of_threads_changes_no_byte(threads_seen: list[int]) -> None:
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(row(encoded(noisy(90, 130)), "keep", "original", SIGMA))  # 35,000 numbers: torch would split that
        assert torch.get_num_threads() == threads
    assert found[0] == found[1]
    assert threads_seen == [1, 1]


# --- what cannot be filtered


@pytest.mark.parametrize(("height", "width"), [(14, 40), (40, 14), (1, 1)])
def test_an_image_that_is_too_small_to_be_mirrored_is_an_error_row(height: int, width: int) -> None:
    result = outcome(encoded(noisy(height, width)), "keep", "original", SIGMA)
    assert isinstance(result, Rejected) and (result.stage, result.code) == ("encode", "too_small_to_denoise")
    assert f"{width} x {height} pixels" in result.message and "at least 15" in result.message
    assert row(encoded(noisy(15, 15)), "keep", "original", SIGMA)
    assert row(encoded(noisy(height, width)), "exact=16", "original", SIGMA)  # it is the scaled image that counts


def test_an_image_that_is_too_large_is_an_error_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_file, "MAX_PIXELS", 20 * 30 - 1)
    result = outcome(encoded(noisy(20, 30)), "keep", "original", SIGMA)
    assert isinstance(result, Rejected) and (result.stage, result.code) == ("encode", "too_large_to_denoise")
    assert "--resize" in result.message
    assert row(encoded(noisy(20, 30)), "shortest=16", "original", SIGMA)


@pytest.mark.parametrize("wrong", [-1.0, 256.0, float("nan"), float("inf")])
def test_what_is_no_noise_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="5 to 25 are usual"):
        Resize.parse("keep", "original", wrong)


# --- the plan's configuration


def test_without_the_filter_the_configuration_is_what_it_was_before_there_was_one() -> None:
    assert Resize().config() == {"mode": "keep", "size": [0, 0], "only_if_larger": True, "encode": "original", "quality": 90}
    scaled = Resize.parse("shortest=256", "jpeg:80").config()
    assert set(scaled.pop("versions")) == {"pillow", "simplejpeg", "torch"}
    assert scaled == {"mode": "shortest", "size": [256, 256], "only_if_larger": True, "encode": "jpeg", "quality": 80}


def test_with_it_the_noise_and_the_filters_version_belong_to_the_configuration() -> None:
    config = Resize.parse("keep", "original:80", 10).config()
    assert json.dumps(config["denoise"]) == "10.0"  # whether a person or a program gave it
    assert config["versions"]["nlmeans"] == "sl-nlmeans-1" and "torch" in config["versions"]
    assert Resize.from_config(json.loads(json.dumps(config))) == Resize(quality=80, denoise=10.0)
    with pytest.raises(ValueError, match="sl-nlmeans-0"):
        Resize.from_config({**config, "versions": {**config["versions"], "nlmeans": "sl-nlmeans-0"}})


def test_what_joins_a_corpus_is_filtered_as_the_corpus_was(tmp_path: Path) -> None:
    def photos(folder: str, *sides: int) -> Path:
        files: dict[str, bytes | str] = {f"images/{side}.png": encoded(noisy(side, 20)) for side in sides}
        put(tmp_path / folder, files | {"captions.csv": "image,caption\n" + "".join(f"{side}.png,a photo\n" for side in sides)})
        return tmp_path / folder

    filtered = IngestOptions(resize=Resize(denoise=SIGMA))
    corpus = ingest_alone(photos("one", 16, 9), tmp_path / "corpus", filtered)
    more = photos("more", 16, 17)  # the one that is there already is known by its filtered pixels
    with pytest.raises(ValueError, match="made with other options"):
        prepare_append(more, corpus, IngestOptions(resize=Resize(denoise=SIGMA + 1)))
    prepared = prepare_append(more, corpus, IngestOptions())
    assert isinstance(prepared, Prepared)
    report = finish_alone(prepared)
    assert (report.kept, report.rejected_by_code) == (2, {"encode/too_small_to_denoise": 1})
    opened = Corpus.open(corpus)
    wanted = {row(encoded(noisy(side, 20)), "keep", "original", SIGMA).image for side in (16, 17)}
    assert {bytes(opened.image(number)) for number in range(opened.rows)} == wanted


def test_the_command_line_takes_the_noise(cli_inline: InlineCommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: str, dest: str, options: IngestOptions) -> None:
        raise ValueError(f"asked for {options.resize.denoise}")

    monkeypatch.setattr(prepare_file, "prepare", refused)
    for arguments, says in ((("--denoise", 10), "asked for 10.0"), ((), "asked for 0.0"), (("--denoise", -1), "--denoise")):
        done = cli_inline("ingest", "source", "dest", *arguments)
        assert done.exit_code == 2 and says in done.stderr
