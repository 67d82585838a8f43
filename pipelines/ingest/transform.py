"""An item becomes a row, or a reason: a pure function of the item and the bytes that it refers to.

Every image is decoded in full, since only that finds what was cut or damaged; the bytes themselves are kept as they
are.
"""

from __future__ import annotations

from collections.abc import Callable

from sightline.models.codec import MAX_PIXELS, ImageError, decode_labels, decode_rgb, probe
from sightline.pipelines.corpus.schema import Rejected, Row, make_row
from sightline.pipelines.ingest.sources.item import Item

MAX_BYTES = 256 * 2**20  # of one file; far above any picture within the pixel limit
Read = Callable[[str], bytes]


def transform(item: Item, plan_row: int, read: Read, *, max_pixels: int = MAX_PIXELS) -> Row | Rejected:
    """The row of an item, or why there is none.

    Args:
        item: as the plan has it.
        plan_row: its position in the plan.
        read: gives the bytes behind a reference, or raises OSError.
        max_pixels: larger images are refused, from their header.
    """

    def rejected(stage: str, code: str, message: str, nbytes: int | None = None) -> Rejected:
        return Rejected(plan_row, item.key, item.image, stage, code, message, nbytes=nbytes)

    if item.verdict is not None:
        return rejected(item.verdict.stage, item.verdict.code, item.verdict.message, item.nbytes)
    if max(item.nbytes or 0, item.mask_nbytes or 0) > MAX_BYTES:
        return rejected("read", "too_many_bytes", f"the file is larger than {MAX_BYTES:,} bytes", item.nbytes)
    try:
        image = read(item.image)
        mask = None if item.mask is None else read(item.mask)
    except FileNotFoundError as error:
        return rejected("read", "missing", f"{error.filename} has gone since it was listed")
    except OSError as error:
        return rejected("read", "unreadable", error.strerror or str(error))
    try:
        height, width, _ = decode_rgb(image, max_pixels=max_pixels).shape
        info = probe(image)
    except ImageError as error:
        return rejected("decode", error.code, str(error), len(image))
    if mask is not None:
        try:
            labels = decode_labels(mask, max_pixels=max_pixels)
        except ImageError as error:
            return rejected("mask", f"mask_{error.code}", str(error), len(mask))
        if labels.shape != (height, width):
            sizes = f"the mask has {labels.shape[1]} x {labels.shape[0]} pixels, the image {width} x {height}"
            return rejected("mask", "mask_size", sizes, len(mask))
    return make_row(
        key=item.key,
        image=image,
        format=info.format,
        width=width,
        height=height,
        captions=item.captions,
        labels=item.labels,
        mask=mask,
        source=item.image,
        extra=item.extra,
    )
