"""Non-local means as a step of an ingest: what a pixel becomes depends on the image and σ alone, whoever filters it.

There is no chance in the filter, and each pixel's sum has a fixed order. What may differ from machine to machine is the last digit
(the width of vectors, and exp with it) and, with several threads, where an operation is cut into pieces. So it runs in one thread
and in float64: the last digit is 1e-13 of a grey level there. In float32 it is 1e-5, and a few pixels of a million would be rounded
to the next grey level.

Images are taken in bands of rows, each with the rows around it that its pixels see, so that memory does not grow with the image.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sightline.models.codec import ImageError

VERSION = "sl-nlmeans-1"  # of everything here and in the filter that decides pixels; belongs to the names of plans
BAND_PIXELS = 2**19  # less than 130 MB while a band is filtered, of the worker's 1 GiB
# The filter takes 4 to 12 µs a pixel. An item that takes 10 minutes ends its worker (`watchdog.py`), and that must not depend on
# how busy a machine is: the largest images take 4 at worst.
MAX_PIXELS = 2**24


def filtered(rgb_HWC: NDArray[np.uint8], sigma: float) -> NDArray[np.uint8]:
    """An image uint8 [H, W, 3] rid of noise of that standard deviation, on the scale 0 to 255.

    Raises:
        ImageError: a side is too short to be mirrored at the border, or there are too many pixels.
    """
    import torch  # takes seconds to load, and most ingests filter nothing

    from sightline.models.lenses.nlmeans import REACH, denoise
    from sightline.models.threads import on_one_thread

    height, width, _ = rgb_HWC.shape
    if min(height, width) <= REACH:
        raise ImageError("too_small_to_denoise", f"{width} x {height} pixels; the filter needs sides of at least {REACH + 1}")
    if height * width > MAX_PIXELS:
        raise ImageError(
            "too_large_to_denoise",
            f"{width:,} x {height:,} pixels are more than the {MAX_PIXELS:,} that are filtered; scale down as well, as by "
            "--resize longest=2048",
        )
    if width > height:  # bands across the shorter side: less is seen twice
        return np.ascontiguousarray(filtered(rgb_HWC.transpose(1, 0, 2), sigma).transpose(1, 0, 2))
    clean_HWC = np.empty(rgb_HWC.shape, np.uint8)
    rows = BAND_PIXELS // width
    with on_one_thread():
        for top in range(0, height, rows):
            first = max(top - REACH, 0)
            band_HWC = denoise(rgb_HWC[first : top + rows + REACH], sigma, dtype=torch.float64)
            clean_HWC[top : top + rows] = band_HWC[top - first :][:rows]
    return clean_HWC
