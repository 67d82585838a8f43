"""Scores of masks against torchmetrics and a plain loop; whose classes are seen; what is ignored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from sightline.models.clip import Clip
from sightline.models.load import load_model
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.evaluate import segmentation
from sightline.pipelines.evaluate.metrics import Confusion, harmonic_mean
from sightline.pipelines.evaluate.protocols import evaluate_segmentation
from sightline.pipelines.feed.masks import MaskClasses, of_fold
from tests.corpora import ingest_alone

NAMES = ("road", "car", "tree", "sky")


def label_maps(images: int, classes: int) -> list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pairs of truth and prediction of several sizes, with ignored pixels, and a class that is nowhere."""
    random = np.random.default_rng(0)
    pairs = []
    for i in range(images):
        truth = random.integers(0, classes - 1, (7 + i, 9)).astype(np.uint8)
        predicted = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, classes - 1, truth.shape)).astype(np.uint8)
        truth[random.random(truth.shape) < 0.2] = 255
        pairs.append((truth, predicted))
    return pairs


def test_iou_and_accuracy_are_those_of_torchmetrics() -> None:
    classes = 6
    confusion = Confusion(classes)
    iou = MulticlassJaccardIndex(classes, average="none", ignore_index=255)
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=255)
    for truth, predicted in label_maps(5, classes):
        confusion.add(truth, predicted)
        for metric in (iou, accuracy):
            metric.update(torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
    there = confusion.unions > 0
    assert there.sum() == classes - 1 and np.isnan(confusion.iou[~there]).all()
    np.testing.assert_allclose(confusion.iou[there], iou.compute().numpy()[there], rtol=0, atol=1e-6)
    assert confusion.mean_iou(range(classes)) == pytest.approx(float(iou.compute().numpy()[there].mean()), abs=1e-6)
    assert confusion.pixel_accuracy == pytest.approx(float(accuracy.compute()), abs=1e-6)


def test_summed_iou_counts_pixels_not_classes() -> None:
    confusion = Confusion(3)
    confusion.add(np.array([[1, 1, 2], [0, 255, 2]], np.uint8), np.array([[1, 2, 2], [1, 1, 0]], np.uint8))
    # class 1: {(0,0)} of {(0,0), (0,1), (1,0)}; class 2: {(0,2)} of {(0,1), (0,2), (1,2)}
    assert confusion.summed_iou([1, 2]) == pytest.approx(2 / 6)
    assert harmonic_mean(0.5, 0.25) == pytest.approx(1 / 3) and harmonic_mean(0.0, 0.0) == 0.0


def test_a_fold_is_a_contiguous_part_of_the_classes() -> None:
    voc = [str(number) for number in range(1, 21)]
    assert of_fold("1/4", voc) == ("1", "2", "3", "4", "5") and of_fold("4/4", voc) == ("16", "17", "18", "19", "20")
    assert sorted(name for part in "123" for name in of_fold(f"{part}/3", voc)) == sorted(voc)
    for wrong in ("5/4", "0/4", "1", "one/4", "1/21"):
        with pytest.raises(ValueError, match="give for example 1/4"):
            of_fold(wrong, voc)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three images of four classes, with ids that have gaps, unlabelled pixels and none for the background."""
    folder = tmp_path_factory.mktemp("street")
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / "source" / "val" / kind).mkdir(parents=True)
    ids = np.array([3, 5, 8, 9, 11, 255], np.uint8)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (20 + i, 30, 3)).astype(np.uint8)).save(folder / f"source/val/images/{i}.png")
        Image.fromarray(ids[random.integers(0, 6, (20 + i, 30))]).save(folder / f"source/val/masks/{i}.png")
    lines = [f"{number},{name}" for number, name in zip((3, 5, 8, 9, 11), (*NAMES, "Unlabelled"), strict=True)]
    (folder / "source/classes.csv").write_text("\n".join(["id,name", *lines]))
    return Corpus.open(ingest_alone(folder / "source", folder / "corpus"))


def test_masks_are_numbered_by_class_and_the_unlabelled_is_ignored(street: Corpus) -> None:
    classes = MaskClasses.of(street)
    assert classes.names == NAMES and not classes.background
    assert [int(classes.number_256[number]) for number in (3, 5, 8, 9, 11, 0, 255)] == [0, 1, 2, 3, 255, 255, 255]
    assert [int(MaskClasses.of(street, ["sky", "car"]).number_256[number]) for number in (3, 5, 9)] == [255, 1, 0]
    with pytest.raises(ValueError, match="no class bus; they have road, car"):
        MaskClasses.of(street, ["bus"])


def test_one_matrix_over_the_set_at_each_images_own_size(street: Corpus, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always answers with the first label that it was asked for."""

    def first_label(model: Clip, rgb: NDArray[np.uint8], labels: list[str], options: object) -> object:
        asked.append(labels)
        return type("Found", (), {"label_map_HW": np.ones(rgb.shape[:2], np.uint8)})()

    asked: list[list[str]] = []
    monkeypatch.setattr(segmentation, "segment", first_label)
    found = evaluate_segmentation(load_model(str(artifact)), street, fold="1/2").metrics
    truths = [MaskClasses.of(street).truth(street, row) for row in range(3)]
    pixels = np.concatenate([truth.ravel() for truth in truths if truth is not None])
    road, every = int((pixels == 0).sum()), int((pixels != 255).sum())
    assert asked == [list(NAMES)] * 6  # twice an image, all of which have all labels
    assert found["iou of road"] == found["pixel_accuracy"] == pytest.approx(road / every)
    assert found["mean_iou"] == pytest.approx(road / every / 4)
    assert found["mean_iou_seen"] == 0 and found["mean_iou_held_out"] == pytest.approx(road / every / 2)
    assert found["mean_iou_harmonic"] == 0 and found["segmentation_classes"] == 4 and found["segmented_images"] == 3


def test_held_out_digits_are_found_by_themselves(digits: Corpus, artifact: Path) -> None:
    model = load_model(str(artifact))
    held_out = set(digits.classes) - set(segmentation.trained_labels(digits)) - {"background"}
    assert len(held_out) == 12
    rows = segmentation.with_masks(digits, digits.select("test"), 6)
    assert rows == digits.select("test")[::20].tolist()
    scores = segmentation.score_masks(model, digits, rows, lambda what, done, total: None)
    found = segmentation.metrics_of(scores, held_out)
    assert 0 <= found["foreground_iou_among_all"] <= found["foreground_iou_given_labels"] <= 1
    assert scores.given.counts_KK.sum() == 6 * 48 * 48  # the background counts
    assert found["segmentation_classes"] == 61


def test_what_cannot_be_scored_is_said(street: Corpus, artifact: Path) -> None:
    model = load_model(str(artifact))
    with pytest.raises(ValueError, match="no class bus"):
        evaluate_segmentation(model, street, held_out=["bus"])
    with pytest.raises(ValueError, match="by name or by fold"):
        evaluate_segmentation(model, street, held_out=["car"], fold="1/2")
    with pytest.raises(ValueError, match="no split 'dev'"):
        evaluate_segmentation(model, street, "dev")
