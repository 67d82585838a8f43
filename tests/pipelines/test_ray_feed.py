from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from sightline.models.augment import Augment
from sightline.models.preprocess import Preprocess
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import Batch, InlineFeed, PixelLoader, feature_loader
from sightline.pipelines.feed.labels import Labelled
from sightline.pipelines.feed.masks import MaskClasses, Masked
from sightline.pipelines.feed.order import Samples
from tests.corpora import digits_source, ingest_alone

pytestmark = pytest.mark.usefixtures("ray_local")
PREPROCESS = Preprocess(size=32)
AUGMENT = Augment(shift=3, grey=0.5, grey_removes=("red", "blue"), flip=0.5, crop_area=(0.5, 1.0))
BATCH = 150  # 150 and 97 take three and two parts, 53 takes one


def inline(corpus: Corpus, own: slice | None = None) -> InlineFeed:
    return InlineFeed(PixelLoader(corpus, AUGMENT, PREPROCESS, "k"), Samples(corpus.select("train")), "k", BATCH, own)


def decoders() -> list[psutil.Process]:
    """The actors that decode, of this session's Ray alone."""
    return [process for process in psutil.Process().children(recursive=True) if "MapWorker" in name_of(process)]


def name_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return ""


def until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def assert_equal(ours: Batch, theirs: Batch) -> None:
    assert ours.inputs.dtype == theirs.inputs.dtype and torch.equal(ours.inputs, theirs.inputs)
    assert ours.captions == theirs.captions and ours.first == theirs.first
    assert ours.uids.tobytes() == theirs.uids.tobytes() and ours.uids.shape == theirs.uids.shape
    assert ours.visits.tolist() == theirs.visits.tolist()


def equal(ours: Iterator[Batch], theirs: Iterator[Batch]) -> int:
    pairs = 0
    for one, other in zip(ours, theirs, strict=True):
        assert_equal(one, other)
        pairs += 1
    return pairs


def test_batches_are_those_of_the_inline_feed(digits: Corpus) -> None:
    from sightline.pipelines.feed.job import RayFeed

    feed = inline(digits, slice(97, 150))
    assert equal(RayFeed(feed, actors=1).batches(3, 8), feed.batches(3, 8)) == 5  # 240 rows: through three epochs


@pytest.mark.parametrize("what", ["labels", "masks"])
def test_labelled_rows_and_masks_are_those_of_the_inline_feed(what: str, digits: Corpus) -> None:
    from sightline.pipelines.feed.job import RayFeed

    rows = digits.select("train")
    labelled = Labelled(digits, rows, np.arange(len(rows)) % 3, 3, Augment(mixup=0.8, cutmix=1.0), PREPROCESS, "k")
    masked = Masked(digits, MaskClasses.of(digits), Augment(crop_area=(0.5, 1.0), flip=0.5), PREPROCESS, "k")
    feed = InlineFeed(labelled.load if what == "labels" else masked.load, Samples(rows), "k", 60)
    assert equal(RayFeed(feed).batches(2, 6), feed.batches(2, 6)) == 4


@pytest.mark.campaign
def test_batches_do_not_know_how_many_actors_there_are_nor_where_a_dataset_ends(digits: Corpus) -> None:
    from sightline.pipelines.feed.job import RayFeed

    assert equal(RayFeed(inline(digits), actors=2, window=9).batches(0, 5), inline(digits).batches(0, 5)) == 5


def test_a_killed_actor_changes_no_batch(digits: Corpus) -> None:
    from sightline.pipelines.feed.job import RayFeed

    ours, theirs = RayFeed(inline(digits), actors=1).batches(0, 30), inline(digits).batches(0, 30)
    assert_equal(next(ours), next(theirs))
    (actor,) = decoders()
    os.kill(actor.pid, signal.SIGKILL)
    assert equal(ours, theirs) == 29


@pytest.mark.campaign
def test_closing_the_iterator_ends_the_actors(digits: Corpus) -> None:
    from sightline.pipelines.feed.job import RayFeed

    batches = RayFeed(inline(digits), actors=2).batches(0, 1_000)
    next(batches)
    assert len(decoders()) == 2
    batches.close()  # type: ignore[attr-defined]
    until(lambda: not decoders())


def test_the_death_of_the_consumer_ends_the_actors(digits: Corpus) -> None:
    import ray

    from sightline.pipelines.feed.job import RayFeed

    class Consumer:
        def begin(self) -> int:
            self.batches = RayFeed(inline(digits), actors=1).batches(0, 1_000)
            return next(self.batches).first

    consumer = ray.remote(num_cpus=1)(Consumer).remote()
    assert ray.get(consumer.begin.remote()) == 0
    assert len(decoders()) == 1
    ray.kill(consumer)
    until(lambda: not decoders())


def test_little_is_decoded_ahead_of_a_slow_consumer(digits: Corpus, tmp_path: Path) -> None:
    from sightline.pipelines.feed import job

    made = tmp_path / "made"

    class Counting(job.Decoder):
        def __call__(self, part):  # type: ignore[no-untyped-def]
            with made.open("a") as file:
                file.write(".")
            return super().__call__(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "Decoder", Counting)
        batches = job.RayFeed(inline(digits), actors=1, ahead=2).batches(0, 200)
        next(batches)
    time.sleep(2)  # nothing to wait for: that it stays at rest is the point
    # One batch of three parts was taken, one part prefetched; two batches and four parts may lie ready, and one more be in work.
    assert made.stat().st_size <= 3 + 1 + 2 * 3 + job.QUEUED + 1
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.campaign
def test_what_cannot_be_read_is_said_in_the_loaders_words(tmp_path: Path) -> None:
    from sightline.pipelines.feed.job import RayFeed

    corpus = Corpus.open(ingest_alone(digits_source(tmp_path / "source", train=8, val=2, test=2), tmp_path / "corpus"))
    image, shard = bytes(corpus.image(int(corpus.select("train")[0]))), tmp_path / "corpus" / corpus.shards[0].file
    shard.chmod(0o600)
    shard.write_bytes(shard.read_bytes().replace(image, bytes(len(image))))
    feed = inline(Corpus.open(tmp_path / "corpus"))
    with pytest.raises(ValueError) as inline_says:
        next(feed.batches(0, 1))
    with pytest.raises(ValueError) as ray_says:
        next(RayFeed(feed).batches(0, 1))
    assert str(ray_says.value) == str(inline_says.value)
    (tmp_path / "corpus").rename(tmp_path / "moved")
    with pytest.raises(OSError, match="corpus"):
        next(RayFeed(feed).batches(0, 1))
    until(lambda: not decoders())


@pytest.mark.campaign
def test_no_room_for_the_actors_is_said(digits: Corpus) -> None:
    from sightline.pipelines.feed.job import RayFeed

    with pytest.raises(TimeoutError, match="no room for 3 CPU actor"):
        next(RayFeed(inline(digits), actors=3, patience_s=3).batches(0, 2))
    until(lambda: not decoders())


def test_features_are_not_fed_by_ray(digits: Corpus) -> None:
    from sightline.pipelines.feed.job import RayFeed

    features = InlineFeed(feature_loader(digits, {}, AUGMENT, "k"), Samples(digits.select("train")), "k", BATCH)
    with pytest.raises(ValueError, match="leave out --feed-actors"):
        RayFeed(features)
    with pytest.raises(ValueError, match="at least 1"):
        RayFeed(inline(digits), actors=0)
