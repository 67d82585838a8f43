"""Batches that the CPUs of other machines decode: Ray Data takes the plan's parts to actors and their samples back, in order.

The shape: each rank has a dataset of its own, with one row for each part (at most PART samples) of its slice of each batch: the
step, the part, and the corpus rows and epochs that the plan gives. Actors open the corpus once, and turn such a row into one block
of samples with the very loader of `InlineFeed`. Ray Data keeps the blocks in order, the rank asserts that they are, and copies them
together. So batches are those of `inline.py`, bit for bit, at any number of ranks and actors: Ray decides who decodes, and when.
What a lost actor had in work is done again, with the same bytes.

Nothing grows with the run. Ray Data holds all rows of a dataset, so a run is fed by one dataset after the other, of WINDOW parts
each; at their seams the rank waits for new actors. Of what is decoded and not yet taken, Ray Data may hold as much as `ahead`
batches and four parts an actor, and the rank one batch that it has put together. When the iterator ends, fails or is closed, so do
the actors; when its process dies, Ray ends them.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch
from numpy.typing import NDArray
from ray.data import ActorPoolStrategy, DataContext, Dataset, ExecutionResources
from ray.exceptions import GetTimeoutError

from sightline.pipelines.feed.inline import Batch, InlineFeed, Loader, PixelLoader, one_ahead
from sightline.pipelines.feed.labels import Labelled
from sightline.pipelines.feed.masks import Masked

PART = 64  # samples that an actor decodes at a time: enough that Ray's milliseconds a task do not count
WINDOW = 4096  # parts in a dataset
QUEUED = 4  # parts that an actor has in work or waits for: with 2 it stood still for a fifth of the time


@dataclass(frozen=True)
class RayFeed:
    """What `InlineFeed` gives, decoded by actors.

    Attributes:
        inline: the feed whose batches these are; its threads are not used.
        actors: how many decode for this rank, each on one CPU.
        ahead: how many batches may lie decoded in Ray's object store.
        patience_s: how long the cluster may take to make room for the actors.
        window: parts in a dataset.
    """

    inline: InlineFeed
    actors: int = 1
    ahead: int = 2
    patience_s: int = 600
    window: int = WINDOW

    def __post_init__(self) -> None:
        if not isinstance(owner(self.inline.load), PixelLoader | Labelled | Masked):
            raise ValueError("the Ray Data feed decodes images, and a locked tower's are features already; leave out --feed-actors")
        if self.actors < 1:
            raise ValueError(f"{self.actors} actors decode nothing; give at least 1")

    @property
    def parts(self) -> int:
        """Into how many parts this rank's slice of a batch is cut."""
        return -(-self.inline.size // PART)

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """The steps first, ..., last - 1. The caller has initialised Ray.

        Raises:
            ValueError: a row cannot be read; the loader's words, as in the next.
            OSError: an actor cannot read the corpus, which may not be on its machine.
            TimeoutError: the cluster has no room for the actors.
        """
        yield from one_ahead(self._in_windows(first, last))

    def _in_windows(self, first: int, last: int) -> Generator[Batch, None, None]:
        steps = max(1, self.window // self.parts)
        for start in range(first, last, steps):
            yield from self._batches(start, min(start + steps, last))

    def _batches(self, first: int, last: int) -> Iterator[Batch]:
        """The batches of one dataset."""
        blocks: Any = iter(self._dataset(first, last).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
        with quiet():
            try:
                for step in range(first, last):
                    yield self._collate(step, [self._block(blocks, step, part) for part in range(self.parts)])
                assert next(blocks, None) is None, f"Ray Data gave more than the {last - first} steps of the plan"
            except GetTimeoutError:
                raise TimeoutError(
                    f"the cluster had no room for {self.actors} CPU actor(s) in {self.patience_s} s that decode for a worker; "
                    "give fewer, or fewer CPUs to the workers, or leave out --feed-actors"
                ) from None
            finally:
                blocks.close()  # ends the actors

    def _block(self, blocks: Iterator[pa.Table], step: int, part: int) -> pa.Table:
        block = next(blocks)
        if "failure" in block.column_names:
            raise (OSError if block["of_system"][0].as_py() else ValueError)(block["failure"][0].as_py())
        found = (block["step"][0].as_py(), block["part"][0].as_py())
        assert found == (step, part), f"Ray Data gave the part {found} where {(step, part)} was due"
        return block

    def _dataset(self, first: int, last: int) -> Dataset:
        """The plan's rows for these steps, mapped to samples; Ray Data's knobs, once."""
        plan = [row for step in range(first, last) for row in self._rows(step)]
        room = self.ahead * self.parts + QUEUED * self.actors
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        # Without it, half of the object store would be filled ahead, by every rank.
        context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=room * self.part_bytes)
        context.target_max_block_size = None  # a part is a block, whatever its size
        context.wait_for_min_actors_s = self.patience_s
        with DataContext.current(context):  # a dataset keeps the one that it was made in
            return ray.data.from_items(plan, override_num_blocks=len(plan)).map_batches(
                Decoder,
                fn_constructor_args=(pickle.dumps(self.inline.load),),
                batch_size=None,
                compute=ActorPoolStrategy(size=self.actors, max_tasks_in_flight_per_actor=QUEUED),
                num_cpus=1,
            )

    @property
    def part_bytes(self) -> int:
        """How much a decoded part takes."""
        loader = owner(self.inline.load)
        channels = 4 if isinstance(loader, Masked) else 3
        return min(PART, self.inline.size) * channels * int(loader.preprocess.size) ** 2

    def _rows(self, step: int) -> Iterator[dict[str, Any]]:
        rows, visits = self.inline.positions(step)
        for part in range(self.parts):
            here = slice(part * PART, (part + 1) * PART)
            yield {"step": step, "part": part, "rows": rows[here], "visits": visits[here]}

    def _collate(self, step: int, blocks: Sequence[pa.Table]) -> Batch:
        arrays = [block["inputs"].combine_chunks().to_numpy(zero_copy_only=False) for block in blocks]
        inputs = torch.empty((self.inline.size, *arrays[0].shape[1:]), dtype=torch.uint8)
        np.concatenate(arrays, out=inputs.numpy())  # out of Ray's shared memory, which is then free
        captions = [caption for block in blocks for caption in block["caption"].to_pylist()]
        uids = [uid for block in blocks for uid in block["uid"].to_pylist()]
        return self.inline.batch(step, inputs, captions, uids)


def owner(load: Loader) -> Any:
    """Whose loader it is: its own, or that of the object that it is a method of."""
    return getattr(load, "__self__", load)


class Decoder:
    """What an actor does: it opens the corpus with its first part, and decodes parts.

    The loader comes pickled, with the corpus as its place and root, so that a corpus that is not here fails in `__call__`.
    """

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled
        self.load: Loader | None = None
        torch.set_num_threads(1)  # it has one CPU

    def __call__(self, part: dict[str, NDArray[Any]]) -> dict[str, Any]:
        try:
            load = self.load = self.load or pickle.loads(self.pickled)
            samples = [load(int(row), int(visit)) for row, visit in zip(part["rows"][0], part["visits"][0], strict=True)]
        except (ValueError, OSError) as error:  # the user's to mend, so no traceback of Ray's around it
            return {"failure": [str(error) or type(error).__name__], "of_system": [isinstance(error, OSError)]}
        inputs, captions, uids = zip(*samples, strict=True)
        return {
            "step": np.repeat(part["step"], len(samples)),
            "part": np.repeat(part["part"], len(samples)),
            "inputs": torch.stack(inputs).numpy(),
            "caption": list(captions),
            "uid": list(uids),
        }


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Ray Data's remarks off the console; its log file in Ray's session folder has them. Several may be open at once."""

    def critical(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.CRITICAL

    consoles = [handler for handler in logging.getLogger("ray.data").handlers if not hasattr(handler, "baseFilename")]
    for handler in consoles:
        handler.addFilter(critical)
    try:
        yield
    finally:
        for handler in consoles:
            handler.removeFilter(critical)
