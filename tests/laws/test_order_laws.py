"""Each epoch is a permutation of the rows; the workers' parts tile every batch; a position means the same after any resume."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sightline.models.losses import Share
from sightline.pipelines.feed.inline import InlineFeed, caption_of
from sightline.pipelines.feed.order import Samples, permute, rows_at

SIZES = st.integers(1, 400)
KEYS = st.text(max_size=8)


@given(SIZES, KEYS, st.integers(0, 10**6))
def test_an_epoch_is_a_permutation(size: int, key: str, epoch: int) -> None:
    assert sorted(permute(np.arange(size), size, key, epoch)) == list(range(size))


@given(SIZES, KEYS, st.integers(0, 5), st.data())
def test_a_position_alone_decides_its_row(size: int, key: str, epoch: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, size - 1))
    whole = permute(np.arange(size), size, key, epoch)
    assert permute(np.array([place]), size, key, epoch)[0] == whole[place]


@given(SIZES, st.integers(0, 2_000), st.integers(1, 300))
def test_a_stretch_may_cross_epochs(size: int, first: int, count: int) -> None:
    rows, epochs = rows_at(first, count, size, "k")
    plain = [(int(permute(np.array([p % size]), size, "k", p // size)[0]), p // size) for p in range(first, first + count)]
    assert list(zip(rows.tolist(), epochs.tolist(), strict=True)) == plain


@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 12))
def test_the_ranks_parts_are_the_one_process_batch(size: int, step: int, world: int) -> None:
    counts = Share.of(12).counts if world == 1 else tuple((r + 1) * 12 // world - r * 12 // world for r in range(world))
    assert sum(counts) == 12 and max(counts) - min(counts) <= 1

    def feed(own: slice | None) -> InlineFeed:
        return InlineFeed(lambda row, epoch: (np.empty(0), ""), Samples(np.arange(size) * 10), "k", 12, own)  # type: ignore[arg-type, return-value]

    alone = feed(None).positions(step)
    parts = [feed(Share(counts, rank).own).positions(step) for rank in range(world)]
    for i in range(2):
        np.testing.assert_array_equal(np.concatenate([part[i] for part in parts]), alone[i])


@given(st.integers(0, 1000), st.integers(1, 7), st.integers(0, 50))
def test_captions_take_turns(row: int, count: int, epoch: int) -> None:
    captions = [str(i) for i in range(count)]
    assert {caption_of(captions, row, epoch + i) for i in range(count)} == set(captions)


def test_epochs_and_keys_have_different_orders() -> None:
    orders = [tuple(permute(np.arange(1000), 1000, key, epoch)) for key in ("a", "b") for epoch in (0, 1)]
    assert len(set(orders)) == 4
    # A shuffle moves rows far: on average a third of the length (uniform permutation: 333 ± 10).
    assert 300 < np.abs(np.array(orders[0]) - np.arange(1000)).mean() < 366


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(1, 3))
def test_an_epoch_of_pairs_has_every_caption_of_every_row_once(counts: list[int], epochs: int) -> None:
    """And no row is ever visited under the same number twice, so no two of its samples are augmented alike."""
    samples = Samples.often(np.arange(len(counts)) * 10, np.array(counts))
    place, visits = samples.at(0, epochs * len(samples), "k")
    rows = samples.rows[place]
    every = sorted((10 * row, caption) for row, count in enumerate(counts) for caption in range(count))
    for epoch in range(epochs):
        here = slice(epoch * len(samples), (epoch + 1) * len(samples))
        said = [
            (row, (row + visit) % counts[row // 10]) for row, visit in zip(rows[here].tolist(), visits[here].tolist(), strict=True)
        ]
        assert sorted(said) == every
    assert len(set(zip(rows.tolist(), visits.tolist(), strict=True))) == len(rows)


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 30))
def test_a_row_once_an_epoch_is_visited_once_an_epoch(size: int, first: int, count: int) -> None:
    rows = np.arange(size) * 3
    found, wanted = Samples(rows).at(first, count, "k"), rows_at(first, count, size, "k")
    assert found[0].tolist() == wanted[0].tolist() and found[1].tolist() == wanted[1].tolist()
