"""Non-local means (Buades, Coll, Morel 2005): each pixel becomes an average of the pixels whose surroundings look like its own.

    out(p) = Σ_q w(p, q) x(q) / Σ_q w(p, q)          q within `distance` rows and columns of p, p itself included
    w(p, q) = exp(−max(d(p, q) − 2σ², 0) / h²)        d: mean over the patch's window and channels of (x(p + o) − x(q + o))²

Nothing is approximated: no cut-off, no table for exp. The loop goes over shifts q − p, not over pixels, so a shift costs a few
passes over the image whatever the patch (Darbon et al. 2008). w(p, q) = w(q, p), so half of the shifts suffice. What is summed
is w(p, q) (x(q) − x(p)), from differences that the distance needs anyway: float32 agrees with float64 to 1e-6, and a flat
image stays as it is to the bit. Rows are taken in blocks, so memory is linear in pixels: the padded image, two sums, one block.

Legend: B batch, C channels, H W pixels; n m rows and columns of a block, N M the same with all that its patches reach.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import exp
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.threads import on_one_thread

Kernel = Literal["uniform", "gaussian"]
# A block has this many differences, 4 MiB in float32: close to the caches, and enough work for two threads to share.
BLOCK_NUMBERS = 2**20
# h in units of σ, where σ is known: what scikit-image advises for these two windows.
H_OF_SIGMA: dict[Kernel, float] = {"uniform": 0.8, "gaussian": 0.6}
PATCH, DISTANCE = 7, 11
REACH = DISTANCE + PATCH // 2  # how many pixels away something may be that changes a pixel; a side has to be longer, to be mirrored


def nl_means(
    image_BCHW: Tensor, *, h: float, patch: int = PATCH, distance: int = DISTANCE, sigma: float = 0.0, kernel: Kernel = "uniform"
) -> Tensor:
    """Images or feature maps [B, C, H, W], float32 or float64 on any device, each filtered by itself; the border is mirrored.

    Args:
        h: the root mean square difference at which a patch counts e⁻¹, in the image's units.
        patch: side of a patch; odd.
        distance: how many rows and columns away a pixel may be.
        sigma: standard deviation of the noise in the image's units; what it adds to a distance, 2σ², is taken off.
        kernel: the window over a patch: all its pixels alike, or a Gaussian with a standard deviation of (patch − 1) / 4.

    Raises:
        ValueError: a size, a type or a parameter does not fit; the message says what would.
    """
    _check(image_BCHW, h, patch, distance, sigma, kernel)
    window = partial(_box, side=patch) if kernel == "uniform" else partial(_weighted, taps=_gaussian(patch))
    scale = 1 / (image_BCHW.shape[1] * h**2 * (patch**2 if kernel == "uniform" else 1))

    def weight(square_B1NM: Tensor) -> Tensor:
        """w of a block's pixels from squared differences, summed over channels, of all that their patches reach."""
        sum_B1nm = window(window(square_B1NM, -2), -1)
        return torch.rsub(sum_B1nm, 2 * (sigma / h) ** 2, alpha=scale).clamp_(max=0).exp_()

    images = max(1, BLOCK_NUMBERS // image_BCHW[0].numel())
    return torch.cat([_filtered(some_BCHW, weight, patch // 2, distance) for some_BCHW in image_BCHW.split(images)])


def denoised(
    image_CHW: Tensor,
    sigma: float,
    *,
    h: float | None = None,
    patch: int = PATCH,
    distance: int = DISTANCE,
    kernel: Kernel = "uniform",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Pixels uint8 [C, H, W], as augmentations take and give them, rid of noise of that standard deviation, in steps of 0 to 255.

    `dtype` is what is computed in. float64 takes twice as long; in float32, processors whose last digits differ round a few pixels
    of a million to the next grey level.

    Raises:
        ValueError: as `nl_means`, or the pixels are not uint8.
    """
    if image_CHW.dtype != torch.uint8:
        raise ValueError(f"pixels are uint8, not {image_CHW.dtype}; for floats there is nl_means")
    if not sigma > 0:
        raise ValueError(f"sigma={sigma} is no standard deviation of noise; 10, 25 and 50 are usual")
    if kernel not in H_OF_SIGMA:
        raise ValueError(f"kernel={kernel!r} is not one of {', '.join(H_OF_SIGMA)}")
    h = H_OF_SIGMA[kernel] * sigma if h is None else h
    clean_BCHW = nl_means(image_CHW[None].to(dtype), h=h, patch=patch, distance=distance, sigma=sigma, kernel=kernel)
    return clean_BCHW[0].round_().clamp_(0, 255).to(torch.uint8)


def denoise(
    rgb_HWC: NDArray[np.uint8],
    sigma: float,
    *,
    h: float | None = None,
    patch: int = PATCH,
    distance: int = DISTANCE,
    kernel: Kernel = "uniform",
    dtype: torch.dtype = torch.float32,
) -> NDArray[np.uint8]:
    """The same for an image as ingest has it: uint8 [H, W, C].

    Of many images, filter one per thread under `on_one_thread`: threads that share an image wait for each other at each
    of thousands of steps, which is faster on an idle machine and many times slower on a busy one.
    """
    image_CHW = torch.from_numpy(np.ascontiguousarray(rgb_HWC.transpose(2, 0, 1)))
    clean_CHW = denoised(image_CHW, sigma, h=h, patch=patch, distance=distance, kernel=kernel, dtype=dtype)
    return np.ascontiguousarray(clean_CHW.permute(1, 2, 0).numpy())


def randomly_denoised(image_CHW: Tensor, sigmas: tuple[float, float], random: np.random.Generator) -> Tensor:
    """An augmentation: `denoised` on one thread, with a standard deviation drawn evenly between two."""
    with on_one_thread():
        return denoised(image_CHW, random.uniform(*sigmas))


# -- one group of images


def _filtered(image_BCHW: Tensor, weight: Callable[[Tensor], Tensor], reach: int, distance: int) -> Tensor:
    images, channels, height, width = image_BCHW.shape
    padded = F.pad(image_BCHW, (distance + reach,) * 4, mode="reflect")
    # Channel 0 is Σ w, the others Σ w (x(q) − x(p)), of the image and `distance` around it; a pixel counts 1 for itself.
    sums = image_BCHW.new_zeros(images, 1 + channels, height + 2 * distance, width + 2 * distance)
    sums[:, 0] = 1
    rows = max(2 * reach + 1, BLOCK_NUMBERS // image_BCHW[:, :, 0].numel())
    for top in range(0, distance + height, rows):
        for down in range(distance + 1):
            # Those p of these rows of which p itself or q = p + (down, right) is in the image.
            above, below = max(top, distance - down), min(top + rows, distance + height)
            if above >= below:
                continue
            # Sums of one row of shifts, added to the others when complete: fewer roundings than one by one.
            for_p, for_q = sums.new_zeros(2, *sums[:, :, above:below].shape)
            for right in range(-distance if down else 1, distance + 1):
                left, end = distance - max(right, 0), distance + width - min(right, 0)
                p = padded[:, :, above : below + 2 * reach, left : end + 2 * reach]
                q = padded[:, :, above + down : below + down + 2 * reach, left + right : end + right + 2 * reach]
                difference_BCNM = q - p
                weight_B1nm = weight(_sum_of_squares(difference_BCNM))
                difference_BCnm = difference_BCNM[:, :, reach : reach + below - above, reach : reach + end - left]
                for there, sign in ((for_p[..., left:end], 1), (for_q[..., left + right : end + right], -1)):
                    there[:, :1].add_(weight_B1nm)
                    there[:, 1:].addcmul_(weight_B1nm, difference_BCnm, value=sign)
            sums[:, :, above:below] += for_p
            sums[:, :, above + down : below + down] += for_q
    inside = sums[:, :, distance : distance + height, distance : distance + width]
    return image_BCHW + inside[:, 1:] / inside[:, :1]


def _sum_of_squares(x_BCNM: Tensor) -> Tensor:
    """Over channels: [B, 1, N, M]. torch sums few long rows slowly, and many short ones fast."""
    if x_BCNM.shape[1] > 8:
        return x_BCNM.square().sum(1, keepdim=True)
    total_B1NM = x_BCNM[:, :1].square()
    for channel_B1NM in x_BCNM.split(1, 1)[1:]:
        total_B1NM.addcmul_(channel_B1NM, channel_B1NM)
    return total_B1NM


# -- windows over a patch, along one dimension; each gives side - 1 fewer than it is given


def _box(x: Tensor, dim: int, side: int) -> Tensor:
    """Sums of `side` neighbours, made of sums of 1, 2, 4, …: 4 additions for 7; cumulative sums would lose digits."""
    long = x.shape[dim] - side + 1
    total, done, size = None, 0, 1
    while size <= side:
        if side & size:
            part = x.narrow(dim, done, long)
            total = part if total is None else total + part
            done += size
        if 2 * size <= side:
            x = x.narrow(dim, 0, x.shape[dim] - size) + x.narrow(dim, size, x.shape[dim] - size)
        size *= 2
    assert total is not None and done == side
    return total


def _weighted(x: Tensor, dim: int, taps: tuple[float, ...]) -> Tensor:
    long = x.shape[dim] - len(taps) + 1
    total = taps[0] * x.narrow(dim, 0, long)
    for place, tap in enumerate(taps[1:], 1):
        total.add_(x.narrow(dim, place, long), alpha=tap)
    return total


def _gaussian(patch: int) -> tuple[float, ...]:
    """Of sum 1; its product with itself is the window over the patch."""
    spread = max(patch - 1, 1) / 4  # a patch of one pixel has one weight anyway
    taps = [exp(-((place - patch // 2) ** 2) / (2 * spread**2)) for place in range(patch)]
    return tuple(tap / sum(taps) for tap in taps)


def _check(image_BCHW: Tensor, h: float, patch: int, distance: int, sigma: float, kernel: str) -> None:
    if image_BCHW.ndim != 4 or not image_BCHW.numel():
        raise ValueError(f"nl_means takes images [B, C, H, W], not {list(image_BCHW.shape)}")
    if image_BCHW.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"nl_means takes float32 or float64, not {image_BCHW.dtype}; for uint8 pixels there is denoise")
    if image_BCHW.requires_grad and torch.is_grad_enabled():
        raise ValueError("nl_means has no gradient: detach() the image, or train a NonLocalBlock in its place")
    if not (h > 0 and sigma >= 0):
        raise ValueError(f"h={h} and sigma={sigma}: h must be above 0 and sigma at least 0; h = 0.8 sigma is a beginning")
    if patch < 1 or patch % 2 == 0:
        raise ValueError(f"patch={patch} has no middle; an odd one does: {max(patch - 1, 1)} or {max(patch + 1, 3)}")
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel={kernel!r} is not one of {', '.join(get_args(Kernel))}")
    room = min(image_BCHW.shape[-2:]) - 1 - patch // 2
    if not 0 <= distance <= room:
        what = (
            f"an image of {image_BCHW.shape[-2]} × {image_BCHW.shape[-1]} cannot be mirrored for patch={patch}, distance={distance}"
        )
        raise ValueError(f"{what}; distance can be 0 to {room}" if room >= 0 else f"{what}; take a smaller patch")
