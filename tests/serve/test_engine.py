"""The engine against the plain model: batches and memory change no answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sightline.models import remembering
from sightline.models.clip import Clip
from sightline.models.segment import Segmentation, segment
from sightline.serve import engine as engine_module
from sightline.serve.engine import Engine
from tests.serve.conftest import encoded, picture

LABELS = ["a cat", "a dog", "snow"]


@pytest.fixture
def engine(model: Clip) -> Engine:
    return Engine(model)


def pixels(engine: Engine, seed: int) -> Tensor:
    return engine.pixels(encoded(picture(seed=seed)), 1_000_000)


def test_an_embedding_does_not_depend_on_its_batch(engine: Engine) -> None:
    images = [pixels(engine, seed) for seed in range(7)]
    together = engine.embed_images(images)
    alone = torch.cat([engine.embed_images([image]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_threads_take_parts_of_a_batch(engine: Engine) -> None:
    images, threads = [pixels(engine, seed) for seed in range(7)], torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = engine.embed_images(images)
        torch.set_num_threads(3)
        torch.testing.assert_close(engine.embed_images(images), want, atol=1e-6, rtol=0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_more_images_than_one_pass_takes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [pixels(engine, seed) for seed in range(5)]
    want = engine.embed_images(images)
    monkeypatch.setattr(remembering, "CHUNK", 2)
    torch.testing.assert_close(engine.embed_images(images), want, atol=1e-6, rtol=0)


@pytest.mark.parametrize("templates", [None, ["{}"], ["a {} at night", "{}"]])
def test_remembered_labels_equal_the_models_own(engine: Engine, model: Clip, templates: list[str] | None) -> None:
    engine.label_weights(["snow", "a dog"], templates)
    got = engine.label_weights(LABELS, templates)
    torch.testing.assert_close(got, model.classifier(LABELS, templates), atol=1e-6, rtol=0)


def test_a_label_passes_the_text_tower_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[str] = []
    original = Clip.embed_texts

    def counted(self: Clip, texts: Sequence[str]) -> Tensor:
        passed.extend(texts)
        return original(self, texts)

    monkeypatch.setattr(Clip, "embed_texts", counted)
    for labels in (LABELS[:2], LABELS, LABELS[::-1]):
        engine.label_weights(labels, ["a {}"])
    assert sorted(passed) == sorted(f"a {label}" for label in LABELS)
    engine.label_weights(LABELS, ["the {}"])
    assert len(passed) == 6


def test_the_labels_asked_for_last_are_kept(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "REMEMBERED_LABELS", 2)
    engine.label_weights(["a", "b"], ["{}"])
    engine.label_weights(["a"], ["{}"])
    engine.label_weights(["c"], ["{}"])
    assert [label for _, label in engine.model.remembered] == ["a", "c"]


def test_a_mask_is_that_of_the_model(engine: Engine, model: Clip) -> None:
    rgb_HWC = np.array(picture(70, 50))
    got, want = engine.segmentation(rgb_HWC, LABELS), segment(model, rgb_HWC, LABELS)
    np.testing.assert_array_equal(got.label_map_HW, want.label_map_HW)
    np.testing.assert_allclose(got.small.scores_LHW, want.scores_LHW, atol=1e-4)


def test_a_large_image_is_segmented_smaller_and_answered_at_its_own_size(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb_HWC = np.array(picture(301, 203))
    small: list[np.ndarray] = []

    def watched(model: Clip, small_HWC: np.ndarray, labels: Sequence[str]) -> Segmentation:
        answer = segment(model, small_HWC, labels)
        small.append(answer.label_map_HW)
        return answer

    monkeypatch.setattr(engine_module, "segment", watched)
    monkeypatch.setattr(engine_module, "MAX_SCORES", 30_000)
    found = engine.segmentation(rgb_HWC, LABELS)
    assert 25_000 < len(LABELS) * small[0].size <= 30_000
    enlarged = Image.fromarray(small[0]).resize((301, 203), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(found.label_map_HW, np.asarray(enlarged))
    assert found.small.scores_LHW[0][found.at].shape == (203, 301)
