"""Non-local means against scikit-image's fast mode on photos: what it gives back of what noise took, and how fast.

python -m benchmarks.nlmeans PHOTOS [HOW_MANY]

PHOTOS is a folder of JPEG files, of which the first by name are taken; noise is added to them, and is not clipped. Both filters
get the same patch, distance, σ and h. scikit-image runs on one thread, as it always does; ours on one and on two.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
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
    ways: dict[str, Callable[[Pixels], Pixels]] = {
        "scikit-image, fast mode": lambda image: theirs(image, sigma / 255),
        "ours, one thread": lambda image: ours(image, sigma / 255, threads=1),
        "ours, two threads": lambda image: ours(image, sigma / 255, threads=2),
        "ours, two threads, Gaussian window": lambda image: ours(image, sigma / 255, threads=2, kernel="gaussian"),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    quality: dict[str, tuple[float, float]] = {}
    for filtered in ways.values():
        filtered(noisy[0][:64, :64])  # libraries wake up
    for _ in range(RUNS):
        for way, filtered in ways.items():
            begun = time.perf_counter()
            clean = [filtered(image) for image in noisy]
            seconds[way].append((time.perf_counter() - begun) / len(photos))
            quality[way] = likeness(photos, clean)
    speed = {way: median(some) for way, some in seconds.items()}
    rows: list[tuple[str, ...]] = [(str(sigma), "the noise as it is", *shown(*likeness(photos, noisy)), "", "")]
    for way in ways:
        ratio = speed["scikit-image, fast mode"] / speed[way]
        rows.append((str(sigma), way, *shown(*quality[way]), f"{speed[way]:.3f}", f"{ratio:.2f}"))
    return rows


def ours(image_HWC: Pixels, sigma: float, threads: int, kernel: Kernel = "uniform") -> Pixels:
    torch.set_num_threads(threads)
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
