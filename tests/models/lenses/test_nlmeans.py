"""Non-local means is its formula: a plain double loop gives the same; where scikit-image departs from it, and how, is known."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sightline.models.lenses import nlmeans
from sightline.models.lenses.nlmeans import denoise, denoised, nl_means, randomly_denoised

pytestmark = pytest.mark.usefixtures("one_thread")

Image = NDArray[np.float64]
Weight = Callable[[Image, Image], float]


def double_loop(image_HWC: Image, patch: int, distance: int, weight: Weight, mirrored: bool = True) -> Image:
    """Pixel by pixel, neighbour by neighbour; the weight is of two patches."""
    reach = patch // 2
    pad = distance + reach
    padded = np.pad(image_HWC, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    height, width, _ = image_HWC.shape
    out = np.empty_like(image_HWC)
    for row in range(pad, pad + height):
        for column in range(pad, pad + width):
            own = padded[row - reach : row + reach + 1, column - reach : column + reach + 1]
            total, norm = np.zeros(out.shape[2]), 0.0
            for y in range(row - distance, row + distance + 1):
                for x in range(column - distance, column + distance + 1):
                    if mirrored or (pad <= y < pad + height and pad <= x < pad + width):
                        w = weight(own, padded[y - reach : y + reach + 1, x - reach : x + reach + 1])
                        total, norm = total + w * padded[y, x], norm + w
            out[row - pad, column - pad] = total / norm
    return out


def window(side: int, kernel: str) -> Image:
    """Weights over a patch, of sum 1."""
    offsets = np.arange(side) - side // 2
    squared = offsets[:, None] ** 2 + offsets[None, :] ** 2
    weights = np.exp(-squared / (2 * ((side - 1) / 4) ** 2)) if kernel == "gaussian" else np.ones((side, side))
    return weights / weights.sum()


def plain(image_HWC: Image, *, h: float, patch: int, distance: int, sigma: float = 0.0, kernel: str = "uniform") -> Image:
    weights = window(patch, kernel)[..., None] / image_HWC.shape[2]

    def weight(own: Image, other: Image) -> float:
        d = float((weights * (own - other) ** 2).sum())
        return math.exp(-max(d - 2 * sigma**2, 0) / h**2)

    return double_loop(image_HWC, patch, distance, weight)


def noisy(height: int = 9, width: int = 11, channels: int = 3, seed: int = 0, sigma: float = 0.1) -> Image:
    """A bright box on a dark ground, and noise."""
    image = np.zeros((height, width, channels))
    image[height // 4 : -height // 4, width // 4 : -width // 4] = 1
    return image + sigma * np.random.default_rng(seed).standard_normal(image.shape)


def ours(image_HWC: Image, dtype: torch.dtype = torch.float64, **options: Any) -> Image:
    image_BCHW = torch.from_numpy(image_HWC.copy()).permute(2, 0, 1)[None].to(dtype)
    return nl_means(image_BCHW, **options)[0].permute(1, 2, 0).double().numpy()


SIZES = [(1, 3, 2, 0.0), (3, 5, 3, 0.1), (9, 3, 2, 0.1), (3, 7, 1, 0.05), (2, 3, 0, 0.0)]


@pytest.mark.parametrize("kernel", ["uniform", "gaussian"])
@pytest.mark.parametrize(("channels", "patch", "distance", "sigma"), SIZES)
def test_it_is_the_double_loop(channels: int, patch: int, distance: int, sigma: float, kernel: str) -> None:
    image = noisy(channels=channels)
    options: dict[str, Any] = {"h": 0.15, "patch": patch, "distance": distance, "sigma": sigma, "kernel": kernel}
    want = plain(image, **options)
    np.testing.assert_allclose(ours(image, **options), want, atol=1e-12)
    np.testing.assert_allclose(ours(image, torch.float32, **options), want, atol=1e-6)


def test_a_patch_of_one_pixel_has_one_window() -> None:
    image = noisy()
    want = plain(image, h=0.2, patch=1, distance=3)
    for kernel in ("uniform", "gaussian"):
        np.testing.assert_allclose(ours(image, h=0.2, patch=1, distance=3, kernel=kernel), want, atol=1e-12)


@pytest.mark.parametrize("level", [10, 25, 50])
def test_float32_is_float64_to_a_millionth_with_the_usual_settings(level: int) -> None:
    sigma = level / 255
    image = noisy(64, 64, sigma=sigma)
    got, want = (ours(image, dtype, h=0.8 * sigma, sigma=sigma) for dtype in (torch.float32, torch.float64))
    np.testing.assert_allclose(got, want, atol=1e-6)


# -- scikit-image: its two modes are the double loop with other weights, and ours is the double loop with the formula's


def schraudolph(y: float) -> float:
    """scikit-image's exp, out of the bits of a double (Schraudolph 1999); up to 4 % off."""
    return float(struct.unpack("<d", struct.pack("<ii", 0, int(1512775.3951951856938 * y) + 1072632447))[0])


def as_fast_mode(image_HWC: Image, *, h: float, patch: int, distance: int, sigma: float) -> Image:
    def weight(own: Image, other: Image) -> float:
        # A patch lacks its first row and column, but is divided by its whole area; weights below e⁻⁵ count nothing.
        square = (own - other)[1:, 1:] ** 2 - 2 * sigma**2
        d = max(float(square.sum()), 0) / own.size / h**2
        return schraudolph(-d) if d <= 5 else 0.0

    return double_loop(image_HWC, patch, distance, weight)


def as_slow_mode(image_HWC: Image, *, h: float, patch: int, distance: int, sigma: float) -> Image:
    weights = window(patch, "gaussian")[..., None] / image_HWC.shape[2]

    def weight(own: Image, other: Image) -> float:
        # A patch counts nothing if its rows before the last come to more than 5; nothing beyond the border counts.
        rows = np.cumsum((weights * ((own - other) ** 2 - 2 * sigma**2) / h**2).sum(axis=(1, 2)))
        return schraudolph(-max(float(rows[-1]), 0)) if max(rows[:-1]) <= 5 else 0.0

    return double_loop(image_HWC, patch, distance, weight, mirrored=False)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fast", [True, False])
def test_what_scikit_image_approximates_is_known_and_is_all_that_differs(fast: bool, channels: int) -> None:
    restoration = pytest.importorskip("skimage.restoration")
    image = noisy(20, 18, channels, sigma=0.3)
    theirs = restoration.denoise_nl_means(image, 5, 3, h=0.3, sigma=0.1, fast_mode=fast, channel_axis=-1).reshape(image.shape)
    want = (as_fast_mode if fast else as_slow_mode)(image, h=0.3, patch=5, distance=3, sigma=0.1)
    np.testing.assert_allclose(theirs, want, atol=1e-9)


@pytest.mark.parametrize(("fast", "kernel", "apart"), [(True, "uniform", 0.15), (False, "gaussian", 0.02)])
def test_we_are_as_close_to_scikit_image_as_that_allows(fast: bool, kernel: str, apart: float) -> None:
    """The picture of its own test: root mean square differences as shares of the noise, which is 0.3."""
    restoration = pytest.importorskip("skimage.restoration")
    image, sigma = noisy(40, 40, 1, sigma=0.3), 0.3
    theirs = restoration.denoise_nl_means(image, 7, 5, h=0.24, sigma=sigma, fast_mode=fast, channel_axis=-1).reshape(image.shape)
    got = ours(image, h=0.24, sigma=sigma, distance=5, kernel=kernel)
    inside = (slice(8, -8), slice(8, -8))  # its slow mode does not mirror what it searches

    def rms(some: Image) -> float:
        return float(np.sqrt((some[inside] ** 2).mean())) / sigma

    assert rms(got - theirs) < apart
    clean = noisy(40, 40, 1, sigma=0)
    assert rms(got - clean) == pytest.approx(rms(theirs - clean), abs=apart / 2)
    assert rms(got - clean) < 0.5


# -- laws

images = arrays(np.float64, st.tuples(st.integers(5, 9), st.integers(5, 9), st.integers(1, 3)), elements=st.floats(-1, 1, width=16))
options = st.fixed_dictionaries(
    {
        "h": st.floats(0.05, 2),
        "sigma": st.floats(0, 0.5),
        "patch": st.sampled_from([1, 3]),
        "distance": st.integers(0, 3),
        "kernel": st.sampled_from(["uniform", "gaussian"]),
    }
)
law = settings(max_examples=30, deadline=None, derandomize=True)


@law
@given(images, options)
def test_mirrors_turns_and_swapped_channels_pass_through(image: Image, how: dict[str, Any]) -> None:
    out = ours(image, **how)
    for same in (lambda x: x[::-1], lambda x: x[:, ::-1], lambda x: x.transpose(1, 0, 2), lambda x: x[..., ::-1]):
        np.testing.assert_allclose(ours(same(image), **how), same(out), atol=1e-10)


@law
@given(images, options, st.floats(0.1, 100), st.floats(-10, 10))
def test_units_do_not_matter(image: Image, how: dict[str, Any], scale: float, offset: float) -> None:
    scaled = how | {"h": how["h"] * scale, "sigma": how["sigma"] * scale}
    np.testing.assert_allclose(ours(image * scale + offset, **scaled), ours(image, **how) * scale + offset, atol=1e-7 * scale)


@law
@given(images, options)
def test_a_mean_is_between_the_smallest_and_the_largest(image: Image, how: dict[str, Any]) -> None:
    out = ours(image, **how)
    assert (out >= image.min((0, 1)) - 1e-12).all() and (out <= image.max((0, 1)) + 1e-12).all()


@law
@given(st.floats(-1e6, 1e6, width=32), options)
def test_a_flat_image_stays_as_it_is(level: float, how: dict[str, Any]) -> None:
    flat = torch.full((1, 2, 7, 8), level)
    assert torch.equal(nl_means(flat, **how), flat)


def test_with_small_h_nothing_changes_and_with_large_h_all_neighbours_count_alike() -> None:
    image_BCHW = torch.from_numpy(noisy()).permute(2, 0, 1)[None]
    torch.testing.assert_close(nl_means(image_BCHW, h=1e-3, patch=3, distance=3), image_BCHW)
    mean_BCHW = F.avg_pool2d(F.pad(image_BCHW, (3,) * 4, mode="reflect"), 7, stride=1)
    torch.testing.assert_close(nl_means(image_BCHW, h=1e6, patch=3, distance=3), mean_BCHW)


# -- blocks and batches


@pytest.mark.parametrize("numbers", [1, 100, 700])
def test_blocks_change_nothing(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image_BCHW = torch.from_numpy(np.stack([noisy(23, 11, seed=seed) for seed in range(5)])).permute(0, 3, 1, 2)
    want = nl_means(image_BCHW, h=0.2, patch=3, distance=4)
    monkeypatch.setattr(nlmeans, "BLOCK_NUMBERS", numbers)
    torch.testing.assert_close(nl_means(image_BCHW, h=0.2, patch=3, distance=4), want, rtol=0, atol=1e-13)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    image_BCHW = torch.rand(4, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    together = nl_means(image_BCHW, h=0.3, patch=3, distance=4)
    torch.testing.assert_close(together, torch.cat([nl_means(one, h=0.3, patch=3, distance=4) for one in image_BCHW.split(1)]))


class Largest(TorchDispatchMode):
    """How many numbers the largest new tensor has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.numbers = max(self.numbers, out.untyped_storage().nbytes() // out.element_size())
        return out


def test_no_tensor_is_larger_than_the_padded_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nlmeans, "BLOCK_NUMBERS", 2**12)
    for side in (32, 64, 128):
        with Largest() as largest:
            nl_means(torch.rand(2, 3, side, side), h=0.2, patch=3, distance=5)
        assert largest.numbers <= (3 + 1) * (side + 2 * (5 + 1)) ** 2 * 2


# -- in its places


def test_denoise_takes_noise_off_pixels() -> None:
    random = np.random.default_rng(0)
    clean = (255 * noisy(48, 40, sigma=0)).astype(np.uint8) // 2 + 60
    dirty = (clean + 20 * random.standard_normal(clean.shape)).clip(0, 255).astype(np.uint8)
    out = denoise(dirty, 20)
    assert out.dtype == np.uint8 and out.shape == dirty.shape and out.flags.c_contiguous

    def psnr(some: NDArray[np.uint8]) -> float:
        return 10 * math.log10(255**2 / ((some.astype(float) - clean) ** 2).mean())

    assert psnr(out) > psnr(dirty) + 8


def test_as_a_filter_and_as_an_augmentation_it_is_the_same() -> None:
    rgb_HWC = (255 * noisy(24, 20).clip(0, 1)).astype(np.uint8)
    image_CHW = torch.from_numpy(rgb_HWC).permute(2, 0, 1)
    out_CHW = denoised(image_CHW, 25, patch=5, distance=4)
    np.testing.assert_array_equal(denoise(rgb_HWC, 25, patch=5, distance=4), out_CHW.permute(1, 2, 0).numpy())
    want = ours(rgb_HWC.astype(float), torch.float32, h=0.8 * 25, sigma=25, patch=5, distance=4)
    np.testing.assert_array_equal(out_CHW.permute(1, 2, 0).numpy(), want.round().clip(0, 255))
    drawn = [randomly_denoised(image_CHW, (5, 25), np.random.default_rng(7)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0], denoised(image_CHW, np.random.default_rng(7).uniform(5, 25)))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"h": 0.0}, "h must be above 0"),
        ({"h": math.nan}, "h must be above 0"),
        ({"sigma": -1.0}, "sigma at least 0"),
        ({"patch": 4}, "3 or 5"),
        ({"patch": 0}, "1 or 3"),
        ({"distance": -1}, "distance can be 0 to 7"),
        ({"distance": 8}, "distance can be 0 to 7"),
        ({"patch": 21}, "a smaller patch"),
        ({"kernel": "box"}, "one of uniform, gaussian"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        nl_means(torch.rand(1, 3, 9, 12), **({"h": 0.1, "patch": 3, "distance": 2} | changed))


def test_images_that_do_not_fit_are_refused() -> None:
    for image, says in [
        (torch.rand(3, 9, 9), r"\[B, C, H, W\]"),
        (torch.rand(0, 3, 9, 9), r"\[B, C, H, W\]"),
        (torch.zeros(1, 3, 9, 9, dtype=torch.uint8), "there is denoise"),
        (torch.rand(1, 3, 9, 9).requires_grad_(), "NonLocalBlock"),
    ]:
        with pytest.raises(ValueError, match=says):
            nl_means(image, h=0.1, patch=3, distance=2)
    with pytest.raises(ValueError, match="uint8"):
        denoised(torch.rand(3, 40, 40), 25)
    with pytest.raises(ValueError, match="10, 25 and 50"):
        denoised(torch.zeros(3, 40, 40, dtype=torch.uint8), 0)
