"""Models behind three questions: validated requests in, answers out. Asynchronous, and without Ray.

Decoding runs in a small pool of threads, so that a broken image fails alone and before it meets a batch. Everything that touches
the towers runs in one thread, in turn: torch uses the replica's cores inside an operation, and two at once only get in each
other's way; it is also why a label is never embedded twice at once. Images of concurrent requests meet in a batch (batcher.py).

Several models may be served at once, each with a share of the requests (a canary); a request may name the one that it wants. An
answer comes of one model, whatever is rolled out meanwhile.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

from torch import Tensor

from sightline.models.codec import ImageError
from sightline.serve import answers, deadline, masks, remote
from sightline.serve.answers import (
    Classified,
    ClassifyAnswer,
    EmbeddingsAnswer,
    Failed,
    SegmentAnswer,
    Segmented,
)
from sightline.serve.batcher import Batcher
from sightline.serve.board import Board, MemoryBoard
from sightline.serve.engine import Enlarged
from sightline.serve.label_sets import LabelSet, LabelSets
from sightline.serve.limits import Limits
from sightline.serve.metrics import Metrics
from sightline.serve.problems import ProblemError
from sightline.serve.results import classified, described, embedding, segmented
from sightline.serve.schemas import (
    ClassifyRequest,
    EmbeddingsRequest,
    ImageData,
    ImageUrl,
    Labelled,
    SegmentRequest,
    base64_bytes,
    check_masks,
    check_prompts,
    is_image,
)
from sightline.serve.served import Served

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

DECODERS = 2
FETCHES = 8  # images by URL that are under way at once


@dataclass(frozen=True)
class Batching:
    """Images of one pass of the tower at most, and how long the first waits for others although the tower is free."""

    max_batch: int = 8
    wait_s: float = 0.0


@dataclass(frozen=True)
class Share:
    """A served model, its queue, and its part of the requests that name none."""

    served: Served
    part: float
    embed_image: Batcher[Tensor, Tensor]


class Service:
    """What a replica does.

    Args:
        served: the model.
        limits: what one request may cost.
        board: what the replicas have in common.
    """

    def __init__(
        self,
        served: Served,
        limits: Limits,
        board: Board | None = None,
        metrics: Metrics | None = None,
        batching: Batching | None = None,
    ) -> None:
        self.limits, self.board = limits, board or MemoryBoard()
        self.metrics, self._batching = metrics or Metrics(), batching or Batching()
        self.label_sets = LabelSets(self.board)
        self._compute, self._turn = ThreadPoolExecutor(1, "compute"), asyncio.Lock()
        self._decode = ThreadPoolExecutor(DECODERS, "decode")
        # Decoded photos wait for their turn here, not in memory: 40 megapixels are 120 MB.
        self._segmenting = asyncio.Semaphore(2)
        self._fetching = asyncio.Semaphore(FETCHES)
        self.shares: tuple[Share, ...] = ()
        self.serve({served.artifact: (served, 1.0)})
        self.metrics.queue.set_function(lambda: sum(len(share.embed_image) for share in self.shares))

    # ------------------------------------------------------------------------------------ which model

    def serve(self, wanted: dict[str, tuple[Served, float]]) -> None:
        """From now on, these models get these parts of the requests. Requests under way keep theirs."""
        known = {share.served.artifact: share for share in self.shares}
        self.shares = tuple(
            Share(served, part, known[digest].embed_image if digest in known else self._batcher(served))
            for digest, (served, part) in wanted.items()
        )
        self.metrics.share.clear()
        for share in self.shares:
            self.metrics.share.labels(share.served.model.name, share.served.artifact).set(share.part)

    def choose(self, name: str | None = None) -> Share:
        """The model of that name, or one by the shares.

        Raises:
            ProblemError: none is called so (404).
        """
        shares = self.shares
        if name is None:
            [chosen] = random.choices(shares, [share.part for share in shares])
        else:
            named = next((share for share in shares if share.served.is_called(name)), None)
            if named is None:
                raise ProblemError(404, "unknown-model", f"there is no model {name[:64]!r} here; GET /v1/models lists them")
            chosen = named
        self.metrics.models.labels(chosen.served.model.name, chosen.served.artifact).inc()
        return chosen

    def _batcher(self, served: Served) -> Batcher[Tensor, Tensor]:
        async def run(images: list[Tensor]) -> Sequence[Tensor]:
            return list(await self._timed("image_tower", self._on_thread(served.engine.embed_images, images)))

        def observe(waited_s: list[float]) -> None:
            self.metrics.batch_size.observe(len(waited_s))
            for seconds in waited_s:
                self.metrics.stage_seconds.labels("queue").observe(seconds)

        return Batcher(run, self._batching.max_batch, self._batching.wait_s, self._turn, observe)

    # ------------------------------------------------------------------------------------ the questions

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        """Raises: ProblemError: the only image cannot be answered for, or there is no such model or label set."""
        share = self.choose(request.model)
        engine = share.served.engine
        named = await self._labels(request)
        label_LD = await self._label_weights(engine.label_weights, share, named)
        other_OD = None
        if request.unknown and request.threshold is None:
            try:
                other_OD = await self._label_weights(engine.other_weights, share, named)
            except ValueError as error:
                raise ProblemError(422, "invalid-field", str(error)) from error

        async def one(image: ImageData, field: str) -> Classified:
            image_D = await share.embed_image(await self._pixels(share, image, field))
            others_O = None if other_OD is None else engine.logits(image_D, other_OD)
            return classified(request, named.labels, engine.logits(image_D, label_LD), others_O)

        return ClassifyAnswer(**share.served.who, results=await self._each(request.images, one))

    async def segment(self, request: SegmentRequest) -> SegmentAnswer:
        """Raises: ProblemError: as `classify`, or the model cannot be read densely (422)."""
        share = self.choose(request.model)
        named = await self._labels(request)

        async def one(image: ImageData, field: str) -> Segmented:
            found = await self._segmentation(share, image, named.labels, field)
            encode = partial(segmented, found, named.labels, request.format)
            return await self._timed("encode", asyncio.to_thread(encode))

        return SegmentAnswer(**share.served.who, results=await self._each(request.images, one))

    async def mask(self, request: SegmentRequest) -> tuple[Served, bytes]:
        """The palette PNG of a single image, and which model made it.

        Raises:
            ProblemError: as `segment`, or there are several images (422).
        """
        if len(request.images) > 1:
            raise ProblemError(422, "invalid-field", "image/png holds the mask of one image; ask for application/json")
        share, named = self.choose(request.model), await self._labels(request)
        found = await self._segmentation(share, request.images[0], named.labels, "image")
        return share.served, await asyncio.to_thread(masks.encode, found.label_map_HW, len(named.labels))

    async def embed(self, request: EmbeddingsRequest) -> EmbeddingsAnswer:
        """Raises: ProblemError: the only input cannot be embedded, or there is no such model."""
        share = self.choose(request.model)
        engine = share.served.engine
        texts = [text for text in request.input if not is_image(text)]
        said: list[Tensor] = []
        if texts:
            said = list(await self._timed("text_tower", self.compute(engine.embed_texts, texts)))
        tokens = await asyncio.to_thread(engine.tokens, texts) if texts else 0
        of_text = iter(said)
        waiting = [next(of_text) if not is_image(text) else text for text in request.input]

        async def one(what: Tensor | str, field: str) -> Tensor:
            if isinstance(what, Tensor):
                return what
            try:
                data = base64_bytes(what.partition(",")[2])
            except ValueError as error:
                raise ProblemError(422, "invalid-field", f"{field}: {error}") from error
            return await share.embed_image(await self._pixels(share, data, field))

        found = await self._each(waiting, one, "input")
        data = [embedding(i, vector, request) for i, vector in enumerate(found)]
        usage = answers.Usage(prompt_tokens=tokens, total_tokens=tokens, images=len(waiting) - len(texts))
        return EmbeddingsAnswer(**share.served.who, data=data, usage=usage)

    # ------------------------------------------------------------------------------------ what it says of itself

    def ready(self) -> answers.Ready:
        return answers.Ready(**self.shares[0].served.who, replica=self.metrics.replica)

    def models(self) -> answers.Models:
        return answers.Models(data=[described(share.served, share.part) for share in self.shares])

    # ------------------------------------------------------------------------------------ stages

    async def compute(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run on the towers' thread, unless the request's deadline passes before its turn.

        Raises:
            ProblemError: it passed (503).
        """
        async with self._turn:
            if deadline.passed(deadline.ends()):
                raise deadline.late()
            return await self._on_thread(work, *args, **kwargs)

    async def _on_thread(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._compute, lambda: work(*args, **kwargs))

    async def _timed(self, stage: str, work: Awaitable[R]) -> R:
        began = time.perf_counter()
        try:
            return await work
        finally:
            self.metrics.stage_seconds.labels(stage).observe(time.perf_counter() - began)

    async def _each(self, items: Sequence[T], answer: Callable[[T, str], Awaitable[R]], name: str = "images") -> list[R | Failed]:
        """The answers for several items: one that fails fails alone. The only one fails as the whole request."""
        alone = len(items) == 1
        field = name.removesuffix("s") if alone else name
        found = await asyncio.gather(
            *(answer(item, field if alone else f"{field}.{i}") for i, item in enumerate(items)), return_exceptions=True
        )
        results: list[R | Failed] = []
        for one in found:
            if isinstance(one, ProblemError) and not alone and one.status < 500:
                self.metrics.refused.labels(one.kind).inc()
                results.append(Failed(error=one.document))
            elif isinstance(one, BaseException):
                raise one
            else:
                results.append(one)
        return results

    async def _labels(self, request: Labelled) -> LabelSet:
        """Raises: ProblemError: there is no such label set (404)."""
        if request.label_set is None:
            assert request.labels is not None
            return LabelSet(request.labels, request.templates)
        named = await asyncio.to_thread(self.label_sets.get, request.label_set)
        self.metrics.label_sets.labels(request.label_set).inc()
        try:
            check_prompts(named.labels, request.templates, self.limits)
            if isinstance(request, SegmentRequest):
                check_masks(named.labels, request, self.limits)
        except ValueError as error:
            raise ProblemError(422, "invalid-field", str(error)) from error
        return LabelSet(named.labels, request.templates or named.templates)

    async def _label_weights(
        self, weights: Callable[[Sequence[str], Sequence[str] | None], Tensor], share: Share, named: LabelSet
    ) -> Tensor:
        counted = share.served.engine.model.counted

        def counting() -> tuple[Tensor, Counter[str]]:
            before = counted.copy()
            return weights(named.labels, named.templates), counted - before

        found, looked_up = await self._timed("text_tower", self.compute(counting))
        for result, count in looked_up.items():
            self.metrics.label_cache.labels(result).inc(count)
        return found

    async def _segmentation(self, share: Share, image: ImageData, labels: Sequence[str], field: str) -> Enlarged:
        data = await self._bytes(image, field)
        async with self._segmenting:
            rgb_HWC = await self._decoded(share.served.engine.rgb, data, field)
            try:
                return await self._timed("segment", self.compute(share.served.engine.segmentation, rgb_HWC, labels))
            except ValueError as error:
                raise ProblemError(422, "cannot-segment", str(error)) from error

    async def _pixels(self, share: Share, image: ImageData, field: str) -> Tensor:
        return await self._decoded(share.served.engine.pixels, await self._bytes(image, field), field)

    async def _bytes(self, image: ImageData, field: str) -> bytes:
        """Raises: ProblemError: the image is too large (413), or its URL gives none (400)."""
        most = self.limits.max_image_bytes
        if isinstance(image, ImageUrl):
            async with self._fetching:
                return await self._timed("fetch", remote.fetch(image.url, field, most))
        if len(image) > most:
            raise ProblemError(413, "image-too-large", f"{field}: {len(image):,} bytes are too many; an image has at most {most:,}")
        return image

    async def _decoded(self, decode: Callable[[bytes, int], R], data: bytes, field: str) -> R:
        """Raises: ProblemError: it is no image (400), or one of too many pixels (413)."""
        loop = asyncio.get_running_loop()
        try:
            return await self._timed("decode", loop.run_in_executor(self._decode, decode, data, self.limits.max_pixels))
        except ImageError as error:
            if error.code == "too_many_pixels":
                raise ProblemError(413, "too-many-pixels", f"{field}: {error}; send a smaller one") from error
            detail = f"{field}: {error}; send a whole JPEG, PNG, WebP or GIF file"
            raise ProblemError(400, "not-an-image", detail) from error
