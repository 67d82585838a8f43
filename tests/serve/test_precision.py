"""The fast image tower against the exact one, and when it is taken."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sightline.models.artifact import golden_images
from sightline.models.clip import Clip
from sightline.serve import precision as precision_module
from sightline.serve import traced as traced_module
from sightline.serve.precision import cosine_difference, has_bfloat16, image_tower, in_bfloat16


@pytest.fixture(autouse=True)
def a_coarse_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' model has weights of three times the usual scale, and is that much more sensitive."""
    monkeypatch.setattr(precision_module, "MAX_DIFFERENCE", 1e-2)


def test_bfloat16_is_close_and_leaves_the_model_as_it_was(model: Clip) -> None:
    images = golden_images(model.preprocess.size)
    want = model.embed_images(images)
    tower = image_tower(model, "bfloat16")
    assert tower.precision == "bfloat16"
    assert 0 < tower.difference <= 1e-2
    torch.testing.assert_close(tower.model.embed_images(images), want, atol=0.1, rtol=0)
    assert {parameter.dtype for parameter in model.towers.parameters()} == {torch.float32}
    torch.testing.assert_close(model.embed_images(images), want, atol=0, rtol=0)
    shared = dict(tower.model.towers.named_children())
    assert all(shared[name] is child for name, child in model.towers.named_children() if name != "visual")


@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_it_where_the_processor_has_it(model: Clip, monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: fast)
    assert image_tower(model, "auto").precision == ("bfloat16" if fast else "float32")


def test_auto_stays_exact_where_bfloat16_is_too_coarse_and_bfloat16_is_refused(
    model: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(precision_module, "MAX_DIFFERENCE", 1e-9)
    exact = image_tower(model, "auto")
    assert (exact.precision, exact.model) == ("float32", model)
    with pytest.raises(ValueError, match="serve it in float32"):
        image_tower(model, "bfloat16")


def test_a_large_tower_in_float32_is_computed_by_onnxruntime(model: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' model is large for once; threads may share the session."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(traced_module, "LEAST_PARAMETERS", 1)
    tower = image_tower(model, "float32")
    assert (tower.precision, tower.runtime) == ("float32", "onnxruntime") and tower.difference < 1e-6
    images = torch.cat([golden_images(model.preprocess.size)] * 2)
    with ThreadPoolExecutor(2) as pool:
        parts = torch.cat(list(pool.map(tower.model.embed_images, images.chunk(2))))
    torch.testing.assert_close(parts, model.embed_images(images), atol=1e-5, rtol=0)
    torch.testing.assert_close(tower.model.embed_texts(["a cat"]), model.embed_texts(["a cat"]), atol=0, rtol=0)


def test_other_golden_embeddings_are_noticed(model: Clip) -> None:
    images = golden_images(model.preprocess.size)
    with pytest.raises(ValueError, match="check the versions"):
        image_tower(model, "float32", (images, -model.embed_images(images)))
    assert cosine_difference(in_bfloat16(model), images, model.embed_images(images)) < 1e-2


@pytest.mark.parametrize(("flags", "has"), [("fpu avx2", False), ("avx512f avx512_bf16", True), ("amx_tile amx_bf16", True)])
def test_the_processor_says_what_it_has(tmp_path: Path, flags: str, has: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: {flags}\n")
    assert has_bfloat16(torch.device("cpu"), tmp_path / "cpuinfo") is has
    assert not has_bfloat16(torch.device("cpu"), tmp_path / "none")
