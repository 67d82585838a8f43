"""An item becomes a row, or a reason: a pure function of the item and the bytes that it refers to.

Every image is decoded in full, since only that finds what was cut or damaged. Its bytes are kept as they are unless the
ingest resizes or re-encodes, for which the same pixels serve. A reason is about the item: storage that refuses everything (expired
credentials, no network) and a full disk of ours raise instead, or a corpus would be "finished" with an error row for each input.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EDQUOT, EMFILE, ENFILE, ENOMEM, ENOSPC

from sightline.models.codec import MAX_PIXELS, ImageError, decode, decode_labels
from sightline.pipelines.corpus.object_store import shut
from sightline.pipelines.corpus.schema import Rejected, Row, make_row
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.item import Item

MAX_BYTES = 256 * 2**20  # of one file; far above any picture within the pixel limit
MACHINE = frozenset({ENOSPC, EDQUOT, EMFILE, ENFILE, ENOMEM})  # of these no item is to blame: what unpacks goes through the disk
KEEP = Resize()
Read = Callable[[str], bytes]


def transform(item: Item, plan_row: int, read: Read, *, max_pixels: int = MAX_PIXELS, resize: Resize = KEEP) -> Row | Rejected:
    """The row of an item, or why there is none.

    Args:
        item: as the plan has it.
        plan_row: its position in the plan.
        read: gives the bytes behind a reference, or raises OSError.
        max_pixels: larger images are refused, from their header.
        resize: what is done to the pixels.

    Raises:
        ConnectionError: the source's storage cannot be reached, or refuses everything; or this machine has no room for reading.
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
    except ConnectionError:
        raise  # the storage is away, and says nothing about this item
    except OSError as error:
        if (code := shut(error)) is not None:
            raise ConnectionError(f"the source refuses everything ({code}): {error.strerror or error}") from None
        if error.errno in MACHINE:
            raise ConnectionError(f"this machine could not read {item.image}: {error.strerror}; mend that") from None
        if isinstance(error, FileNotFoundError):
            return rejected("read", "missing", f"{error.filename} has gone since it was listed")
        return rejected("read", "unreadable", error.strerror or str(error))
    stage = "decode"
    try:
        info, rgb = decode(image, max_pixels=max_pixels)
        labels = None
        if mask is not None:
            stage = "mask"
            labels = decode_labels(mask, max_pixels=max_pixels)
            if labels.shape != (info.height, info.width):
                sizes = f"{labels.shape[1]} x {labels.shape[0]} pixels, the image {info.width} x {info.height}"
                raise ImageError("size", f"the mask has {sizes}")
        stage = "encode"
        picture = resize.apply(image, info, rgb, mask, labels, max_pixels)
    except ImageError as error:
        if mask is not None and stage == "mask":
            return rejected(stage, f"mask_{error.code}", str(error), len(mask))
        return rejected(stage, error.code, str(error), len(image))
    return make_row(
        key=item.key,
        image=picture.image,
        format=picture.format,
        width=picture.width,
        height=picture.height,
        captions=item.captions,
        labels=item.labels,
        mask=picture.mask,
        source=item.image,
        extra=item.extra,
    )
