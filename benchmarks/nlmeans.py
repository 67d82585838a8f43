"""Non-local means against scikit-image's fast mode on photos: what it gives back of what noise took, and how fast.

python -m benchmarks.nlmeans PHOTOS [HOW_MANY]

PHOTOS is a folder of JPEG files, of which the first by name are taken; noise is added to them, and is not clipped. Both filters
get the same patch, distance, σ and h. scikit-image has one thread and holds Python's lock; ours has one, or two that take a photo
each (as ingest would), or two that share one photo. Sharing means to wait for each other thousands of times a second: measure it on
a quiet machine, as one process beside it that wants a core makes it many times slower.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.restoration import denoise_nl_means

from benchmarks.report import section
from sightline.models.lenses.nlmeans import Kernel, nl_means

Pixels = NDArray[np.float32]
SIGMAS, PHOTOS, RUNS = (10, 25, 50), 24, 5
PEER = "scikit-image, fast mode"
PATCH, DISTANCE, H_OF_SIGMA = 7, 11, 0.8


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    count = int(sys.argv[2]) if len(sys.argv) == 3 else PHOTOS
    paths = sorted(path for path in Path(sys.argv[1]).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if len(paths) < count:
        sys.exit(f"{sys.argv[1]} has {len(paths)} JPEG files, and {count} are asked for")
    photos = [np.asarray(Image.open(path).convert("RGB"), np.float32) / np.float32(255) for path in paths]
    rows = [row for sigma in SIGMAS for row in measured(photos, sigma)]
    what = (
        f"{count} photos of {mean(photo.shape[0] * photo.shape[1] for photo in photos) / 1e6:.2f} megapixels on average, Gaussian "
        f"noise, patches of {PATCH} × {PATCH}, {2 * DISTANCE + 1} × {2 * DISTANCE + 1} neighbours, h = {H_OF_SIGMA} σ; "
        f"means over photos; seconds are medians of {RUNS} runs that took turns"
    )
    header = ("σ", "", "PSNR", "SSIM", "seconds a photo", "times scikit-image's speed")
    section("Non-local means", "python -m benchmarks.nlmeans PHOTOS", what, ("torch", "scikit-image"), header, rows)


def measured(photos: list[Pixels], sigma: int) -> list[tuple[str, ...]]:
    """A row for each filter."""
    random = np.random.default_rng(sigma)
    noisy = [photo + (sigma / 255 * random.standard_normal(photo.shape)).astype(np.float32) for photo in photos]
    uniform, gaussian = (partial(ours, sigma=sigma / 255, kernel=kernel) for kernel in ("uniform", "gaussian"))
    ways: dict[str, Callable[[list[Pixels]], list[Pixels]]] = {
        PEER: lambda images: [theirs(image, sigma / 255) for image in images],
        "ours, one thread": lambda images: on_threads(uniform, images, share=1),
        "ours, two threads, a photo each": lambda images: on_threads(uniform, images, at_once=2),
        "ours, two threads share a photo": lambda images: on_threads(uniform, images, share=2),
        "ours with a Gaussian window, two threads, a photo each": lambda images: on_threads(gaussian, images, at_once=2),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    quality: dict[str, tuple[float, float]] = {}
    for filtered in ways.values():
        filtered([image[:64, :64] for image in noisy[:2]])  # libraries wake up
    for _ in range(RUNS):
        for way, filtered in ways.items():
            begun = time.perf_counter()
            clean = filtered(noisy)
            seconds[way].append((time.perf_counter() - begun) / len(photos))
            quality[way] = likeness(photos, clean)
    speed = {way: median(some) for way, some in seconds.items()}
    return [
        (str(sigma), "the noise as it is", *shown(*likeness(photos, noisy)), "", ""),
        *((str(sigma), way, *shown(*quality[way]), f"{speed[way]:.3f}", f"{speed[PEER] / speed[way]:.2f}") for way in ways),
    ]


def on_threads(filtered: Callable[[Pixels], Pixels], images: list[Pixels], at_once: int = 1, share: int = 1) -> list[Pixels]:
    """So many images at once, each by so many threads."""
    torch.set_num_threads(share)
    if at_once == 1:
        return [filtered(image) for image in images]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(filtered, images))


def ours(image_HWC: Pixels, sigma: float, kernel: Kernel) -> Pixels:
    image_BCHW = torch.from_numpy(image_HWC).permute(2, 0, 1)[None].contiguous()
    out_BCHW = nl_means(image_BCHW, h=H_OF_SIGMA * sigma, patch=PATCH, distance=DISTANCE, sigma=sigma, kernel=kernel)
    return out_BCHW[0].permute(1, 2, 0).numpy()


def theirs(image_HWC: Pixels, sigma: float) -> Pixels:
    return denoise_nl_means(image_HWC, PATCH, DISTANCE, H_OF_SIGMA * sigma, fast_mode=True, sigma=sigma, channel_axis=-1)


def likeness(photos: list[Pixels], others: list[Pixels]) -> tuple[float, float]:
    """PSNR in dB and SSIM, means over photos."""
    pairs = [(photo, other.clip(0, 1)) for photo, other in zip(photos, others, strict=True)]
    psnr = mean(float(peak_signal_noise_ratio(*pair, data_range=1)) for pair in pairs)
    return psnr, mean(float(structural_similarity(*pair, data_range=1, channel_axis=-1)) for pair in pairs)


def shown(psnr: float, ssim: float) -> tuple[str, str]:
    return f"{psnr:.2f} dB", f"{ssim:.3f}"


if __name__ == "__main__":
    main()
