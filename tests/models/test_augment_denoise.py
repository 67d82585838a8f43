"""Non-local means as an augmentation: the filter at a σ drawn by the sample's generator, and no other run's name changes."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sightline.models.augment import Augment, augment, augment_pair, crop_box, random_crop
from sightline.models.lenses.nlmeans import nl_means
from sightline.models.preprocess import Preprocess, to_CHW
from sightline.models.rand_augment import rand_augment
from sightline.pipelines.train.checks import check_ranges
from sightline.pipelines.train.spec import canonical_json, from_json, override
from sightline.recipes import find_recipe

pytestmark = pytest.mark.usefixtures("one_thread")

Pixels = NDArray[np.uint8]
SMALL = Preprocess(32)


def clean(height: int, width: int) -> Pixels:
    rows, columns = np.mgrid[:height, :width]
    waves = [128 + 90 * np.sin(rows / 9), 128 + 90 * np.cos(columns / 7), 100 + rows + columns]
    return np.stack(waves, axis=2).clip(0, 255).astype(np.uint8)


def noisy(height: int, width: int, sigma: float = 10) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, (height, width, 3))
    return (clean(height, width) + noise).round().clip(0, 255).astype(np.uint8)


def by_hand(image_CHW: torch.Tensor, sigma: float) -> torch.Tensor:
    return nl_means(image_CHW[None].float(), h=0.8 * sigma, sigma=sigma)[0].round().clamp(0, 255).to(torch.uint8)


# -- images


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_filter_after_crop_and_flip_and_before_rand_augment(seed: int) -> None:
    options = Augment(crop_area=(0.4, 1.0), flip=0.5, denoise=(5, 25), rand_augment=(2, 9.0))
    found, caption = augment(noisy(50, 60), "a photo", options, SMALL, np.random.default_rng(seed))
    random = np.random.default_rng(seed)
    want = random_crop(to_CHW(noisy(50, 60)), (0.4, 1.0), 32, random)
    if random.random() < 0.5:
        want = want.flip(-1)
    want = by_hand(want, random.uniform(5, 25))
    assert torch.equal(found, rand_augment(want, 2, 9.0, random)) and caption == "a photo"


def test_the_generator_alone_decides() -> None:
    options = Augment(denoise=(2, 40))
    drawn = [augment(noisy(40, 40), "x", options, SMALL, np.random.default_rng(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    plain = augment(noisy(40, 40), "x", Augment(), SMALL, np.random.default_rng(1))[0]
    assert not torch.equal(drawn[0], plain) and torch.equal(plain, SMALL.pixels(noisy(40, 40)))


def test_so_does_it_for_a_mask_which_goes_where_it_goes_without() -> None:
    mask = (np.arange(50 * 60) % 7).astype(np.uint8).reshape(50, 60)
    options = Augment(crop_area=(0.4, 1.0), flip=0.5, denoise=(5, 25))
    for seed in range(3):
        found, where = augment_pair(noisy(50, 60), mask, options, 32, np.random.default_rng(seed))
        plain, there = augment_pair(noisy(50, 60), mask, replace(options, denoise=None), 32, np.random.default_rng(seed))
        random = np.random.default_rng(seed)
        crop_box(50, 60, (0.4, 1.0), random)
        random.random()
        assert torch.equal(found, by_hand(plain, random.uniform(5, 25))) and not torch.equal(found, plain)
        assert torch.equal(where, there)


def test_noise_goes() -> None:
    def psnr(some_CHW: torch.Tensor) -> float:
        error = (some_CHW.double() - to_CHW(clean(48, 48)).double()).square().mean()
        return float(10 * torch.log10(255**2 / error))

    found, _ = augment(noisy(48, 48), "", Augment(denoise=(10, 10)), Preprocess(48), np.random.default_rng(0))
    assert psnr(found) > psnr(to_CHW(noisy(48, 48))) + 5


def test_threads_decide_nothing_and_stay_as_many_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found, seen = [], []

    def watched(*arguments: object, **options: object) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return nl_means(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("sightline.models.lenses.nlmeans.nl_means", watched)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(augment(noisy(110, 110), "", Augment(denoise=(5, 15)), Preprocess(110), np.random.default_rng(0))[0])
        assert torch.get_num_threads() == threads
    assert torch.equal(*found) and seen == [1, 1]


# -- runs


def test_runs_without_it_go_by_the_names_that_they_had_before() -> None:
    # As they were; a change of the recipe itself changes them too.
    assert (find_recipe("clip_demo").run_id, find_recipe("lseg_camvid").run_id) == ("c8ecde6ae2a2", "36db707d0f79")


def test_runs_with_it_go_by_the_noise_and_survive_json() -> None:
    plain = find_recipe("clip_demo")
    chosen = [override(plain, [f"denoise={noise}"]) for noise in ("[5, 15]", "[5, 16]")]
    assert chosen[0].data.augment.denoise == (5, 15)
    assert len({plain.run_id, *(spec.run_id for spec in chosen)}) == 3
    assert override(chosen[0], ["denoise=null"]).run_id == plain.run_id
    assert from_json(canonical_json(asdict(chosen[0]))) == chosen[0]


@pytest.mark.parametrize("wrong", ["[0, 5]", "[-1, 5]", "[9, 5]", "[5, 256]", "[NaN, 5]", "[5, Infinity]"])
def test_what_is_no_noise_is_refused_before_the_first_step(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"denoise=.*as in \[5, 15\]"):
        check_ranges(override(find_recipe("clip_demo"), [f"denoise={wrong}"]))


def test_a_network_too_small_for_the_filter_is_refused_before_the_first_step() -> None:
    spec = override(find_recipe("clip_demo"), ["denoise=[5, 15]", "model.preprocess.size=14"])
    with pytest.raises(ValueError, match=r"size=14 has no room .* give at least 15, or leave denoise out"):
        check_ranges(spec)
    check_ranges(override(spec, ["model.preprocess.size=15"]))
    augment(noisy(40, 40), "", spec.data.augment, Preprocess(15), np.random.default_rng(0))
    with pytest.raises(ValueError, match="cannot be mirrored"):
        augment(noisy(40, 40), "", spec.data.augment, Preprocess(14), np.random.default_rng(0))


def test_features_that_are_kept_see_no_filter_so_it_is_refused() -> None:
    with pytest.raises(ValueError, match="computed once, without augmentation; leave out denoise"):
        check_ranges(override(find_recipe("lseg_camvid"), ["denoise=[5, 15]"]))
    check_ranges(override(find_recipe("lseg_vit_l14"), ["denoise=[5, 15]", "model.lock_image=false"]))
