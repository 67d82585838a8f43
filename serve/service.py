"""One model behind three questions: validated requests in, answers out. Asynchronous, and without Ray.

Decoding runs in a small pool of threads, so that a broken image fails alone and before it meets a batch. Everything that touches
the towers runs in one thread, in turn: torch uses the replica's cores inside an operation, and two at once only get in each
other's way. `embed_image` is the seam for batching: Ray Serve puts its queue there (app.py).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sightline.models.codec import ImageError
from sightline.models.zeroshot import BACKGROUND
from sightline.serve import masks
from sightline.serve.engine import Engine
from sightline.serve.problems import ProblemError
from sightline.serve.schemas import (
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    LabelArea,
    Limits,
    Prediction,
    Ready,
    SegmentAnswer,
    SegmentRequest,
)

P = ParamSpec("P")
R = TypeVar("R")

EmbedImage = Callable[[Tensor], Awaitable[Tensor]]

DECODERS = 2


@dataclass(frozen=True)
class Mask:
    """A label map and the labels that its values stand for."""

    label_map_HW: NDArray[np.uint8]
    labels: tuple[str, ...]

    def png(self) -> bytes:
        return masks.encode(self.label_map_HW, len(self.labels))


class Service:
    """What a replica does.

    Args:
        engine: the model.
        limits: what one request may cost.
        embed_image: input [3, S, S] → unit embedding [D]; by default each image is a batch of its own.
    """

    def __init__(self, engine: Engine, limits: Limits, embed_image: EmbedImage | None = None) -> None:
        self.engine, self.limits = engine, limits
        self._embed_image = embed_image or self._embed_alone
        self._compute = ThreadPoolExecutor(1, "compute")
        self._decode = ThreadPoolExecutor(DECODERS, "decode")
        # Decoded photos wait for their turn here, not in memory: 40 megapixels are 120 MB.
        self._segmenting = asyncio.Semaphore(2)
        self.who = {"model": engine.model.name, "revision": engine.model.revision}

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Raises: ProblemError: the image cannot be read or is too large."""
        image_CHW = await self._pixels(request.image)
        image_D, label_LD = await asyncio.gather(
            self._embed_image(image_CHW), self.compute(self.engine.label_weights, request.labels, request.templates)
        )
        logits_L = self.engine.logits(image_D, label_LD)
        rows = zip(request.labels, logits_L.softmax(-1).tolist(), logits_L.tolist(), strict=True)
        predictions = [Prediction(label=label, score=score, logit=logit) for label, score, logit in rows]
        predictions.sort(key=lambda prediction: -prediction.logit)
        return ClassifyAnswer(**self.who, predictions=predictions[: request.top_k])

    async def mask(self, request: SegmentRequest) -> Mask:
        """Raises: ProblemError: the image cannot be read or is too large, or the model cannot be read densely."""
        async with self._segmenting:
            rgb_HWC = await self._decoded(self.engine.rgb, request.image)
            try:
                label_map_HW = await self.compute(self.engine.label_map, rgb_HWC, request.labels)
            except ValueError as error:
                raise ProblemError(422, "cannot-segment", str(error)) from error
        return Mask(label_map_HW, tuple(request.labels))

    async def segment(self, request: SegmentRequest) -> SegmentAnswer:
        """`mask` and its legend. Raises: as `mask`."""
        mask = await self.mask(request)
        height, width = mask.label_map_HW.shape
        counts = masks.pixel_counts(mask.label_map_HW, len(mask.labels))
        areas = [
            LabelArea(label=label, colour=masks.colour(i), pixels=count, fraction=count / (height * width))
            for i, (label, count) in enumerate(zip(mask.labels, counts, strict=True))
        ]
        png = base64.b64encode(await asyncio.to_thread(mask.png)).decode()
        return SegmentAnswer(**self.who, width=width, height=height, labels=areas, mask=png)

    async def embed(self, request: EmbedRequest) -> EmbedAnswer:
        """Raises: ProblemError: an image cannot be read or is too large; the message says which."""
        pixels = await asyncio.gather(*(self._pixels(data, f"images.{i}") for i, data in enumerate(request.images)))
        images = [embedding.tolist() for embedding in await asyncio.gather(*map(self._embed_image, pixels))]
        texts = (await self.compute(self.engine.embed_texts, request.texts)).tolist() if request.texts else []
        return EmbedAnswer(**self.who, dimension=len((images + texts)[0]), images=images, texts=texts)

    def ready(self) -> Ready:
        model = self.engine.model
        classes = [name for name in model.classes if name != BACKGROUND]
        return Ready(**self.who, templates=list(model.templates), classes=classes)

    async def compute(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run on the towers' thread."""
        return await asyncio.get_running_loop().run_in_executor(self._compute, lambda: work(*args, **kwargs))

    async def _embed_alone(self, image_CHW: Tensor) -> Tensor:
        return (await self.compute(self.engine.embed_images, [image_CHW]))[0]

    async def _pixels(self, data: bytes, field: str = "image") -> Tensor:
        return await self._decoded(self.engine.pixels, data, field)

    async def _decoded(self, decode: Callable[[bytes, int], R], data: bytes, field: str = "image") -> R:
        if len(data) > self.limits.max_image_bytes:
            raise ProblemError(
                413,
                "image-too-large",
                f"{field}: {len(data):,} bytes are too many; an image has at most {self.limits.max_image_bytes:,}",
            )
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._decode, decode, data, self.limits.max_pixels)
        except ImageError as error:
            if error.code == "too_many_pixels":
                raise ProblemError(413, "too-many-pixels", f"{field}: {error}") from error
            detail = f"{field}: {error}; send a whole JPEG, PNG, WebP or GIF file"
            raise ProblemError(400, "not-an-image", detail) from error
