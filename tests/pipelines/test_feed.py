from __future__ import annotations

import numpy as np
import torch

from sightline.models.augment import Augment, augment
from sightline.models.codec import decode_rgb
from sightline.models.preprocess import Preprocess
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import InlineFeed, PixelLoader, generator
from sightline.pipelines.feed.order import Samples, permute

PREPROCESS = Preprocess(size=32)
AUGMENT = Augment(shift=3, grey=0.5, grey_removes=("red", "blue"), flip=0.5, crop_area=(0.5, 1.0))


def feed(corpus: Corpus, own: slice | None, threads: int) -> InlineFeed:
    rows = corpus.select("train")
    return InlineFeed(PixelLoader(corpus, AUGMENT, PREPROCESS, "k"), Samples(rows), "k", 24, own, threads)


def test_batches_are_the_same_at_any_world_size_thread_count_and_start(digits: Corpus) -> None:
    alone = list(feed(digits, None, 1).batches(0, 14))  # 336 samples: into the second epoch
    split = [list(feed(digits, own, 3).batches(0, 14)) for own in (slice(0, 13), slice(13, 24))]
    late = list(feed(digits, slice(0, 24), 2).batches(9, 14))
    for step, batch in enumerate(alone):
        pixels, captions = batch.inputs, batch.captions
        assert pixels.dtype == torch.uint8 and pixels.shape == (24, 3, 32, 32)
        assert torch.equal(pixels, torch.cat([part[step].inputs for part in split]))
        assert captions == [caption for part in split for caption in part[step].captions]
        if step >= 9:
            assert torch.equal(pixels, late[step - 9].inputs) and captions == late[step - 9].captions


def test_batches_are_what_a_plain_loop_over_the_positions_reads(digits: Corpus) -> None:
    rows = digits.select("train")
    position = 0
    for batch in feed(digits, None, 2).batches(0, 11):
        assert batch.first == position and len(batch.inputs) == len(batch.captions) == 24
        for i, (pixels, caption) in enumerate(zip(batch.inputs, batch.captions, strict=True)):
            epoch, place = divmod(position, len(rows))
            row = int(rows[permute(np.array([place]), len(rows), "k", epoch)[0]])
            said = digits.captions(row)
            rgb = decode_rgb(digits.image(row))
            wanted = augment(rgb, said[(row + epoch) % len(said)], AUGMENT, PREPROCESS, generator("k", epoch, row))
            assert torch.equal(pixels, wanted[0]) and caption == wanted[1]
            assert batch.uids[i].tobytes() == digits.uid(row) and batch.visits[i] == epoch
            position += 1


def test_a_broken_row_stops_the_feed(digits: Corpus) -> None:
    def load(row: int, epoch: int) -> tuple[torch.Tensor, str]:
        raise ValueError(f"row {row} is broken")

    broken = InlineFeed(load, Samples(digits.select("train")), "k", 8)
    try:
        next(iter(broken.batches(0, 2)))
    except ValueError as error:
        assert "is broken" in str(error)
    else:
        raise AssertionError("a broken row went unnoticed")
