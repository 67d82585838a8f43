"""The lens `nlmeans`: noise is added to photos, and taken out again by averaging what looks alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sightline.models.lenses.nlmeans import denoise
from sightline.models.threads import on_one_thread
from sightline.pipelines.lens.figures import panels, save
from sightline.pipelines.lens.report import Seen

SOURCE = "Buades, Coll and Morel 2005, A Non-Local Algorithm for Image Denoising"
Image = NDArray[np.uint8]


def look(
    images: Sequence[Image], sigmas: Sequence[float], folder: Path, *, patch: int = 7, distance: int = 11, seed: int = 0
) -> Seen:
    """Each image uint8 [H, W, 3] at each strength of noise (standard deviations, on the scale 0 to 255).

    Raises:
        ValueError: an image is too small for the patch and the distance.
        ModuleNotFoundError: scikit-image, which measures, is not installed.
    """
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ModuleNotFoundError:
        raise ModuleNotFoundError('PSNR and SSIM need scikit-image; pip install "sightline[lens]"') from None

    def scores(found_HWC: Image, clean_HWC: Image) -> dict[str, float]:
        ssim = structural_similarity(clean_HWC, found_HWC, channel_axis=2, data_range=255)
        return {"psnr_db": float(peak_signal_noise_ratio(clean_HWC, found_HWC, data_range=255)), "ssim": float(ssim)}

    random = np.random.default_rng(seed)
    with on_one_thread():
        rows: list[dict[str, Any]] = []
        shown: list[list[Image]] = []
        for sigma in sigmas:
            shown.append([])
            before, after = [], []
            for clean_HWC in images:
                noise_HWC = random.normal(0, sigma, clean_HWC.shape)
                noisy_HWC = (clean_HWC + noise_HWC).round().clip(0, 255).astype(np.uint8)
                found_HWC = denoise(noisy_HWC, sigma, patch=patch, distance=distance)
                before.append(scores(noisy_HWC, clean_HWC))
                after.append(scores(found_HWC, clean_HWC))
                shown[-1] = shown[-1] or [noisy_HWC, found_HWC]
            rows.append({"sigma": sigma, "noisy": means(before), "denoised": means(after)})
    figure, axes = panels(2 * len(sigmas), columns=2, side=3.4)
    titles = [title(row, name) for row in rows for name in ("noisy", "denoised")]
    for place, picture, words in zip(axes, [picture for pictures in shown for picture in pictures], titles, strict=True):
        place.imshow(picture)
        place.set_title(words, fontsize=8)
        place.set_axis_off()
    caption = (
        "Left, a photo with noise of a known strength; right, each pixel an average of the pixels around whose patches look like "
        "its own. Self-attention is the same average, with a learned likeness."
    )
    numbers = {"images": len(images), "patch": patch, "distance": distance, "rows": rows}
    return Seen("nlmeans", numbers, (save(figure, folder / "nlmeans.png"),), caption, SOURCE)


def means(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in scores])) for name in scores[0]}


def title(row: dict[str, Any], name: str) -> str:
    return f"σ {row['sigma']:g}, {name}: {row[name]['psnr_db']:.1f} dB, SSIM {row[name]['ssim']:.2f}"
