"""The ledger does not depend on who reads what, and notices every change of what is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.feed.inline import InlineFeed, Sample
from sightline.pipelines.feed.ledger import link, origin, replay, words_of
from sightline.pipelines.feed.order import Samples, rows_at
from sightline.pipelines.train.spec import canonical_json, resolve, samples_of
from sightline.pipelines.train.verify import verify_run
from sightline.recipes import find_recipe
from tests.corpora import digits_source, ingest_alone

UIDS = np.random.default_rng(0).integers(0, 256, (40, 16), np.uint8)


@given(st.integers(1, 30), st.integers(0, 2**40), st.data())
def test_the_sum_does_not_know_who_read_what(count: int, first: int, data: st.DataObject) -> None:
    epochs = np.arange(count, dtype=np.int64) // 7
    whole = words_of(UIDS[:count], epochs, first).sum(axis=0)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=4)))
    bounds = [0, *cuts, count]
    parts = [words_of(UIDS[a:b], epochs[a:b], first + a).sum(axis=0) for a, b in pairwise(bounds)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), whole)


@given(st.integers(2, 30), st.integers(0, 1000), st.data())
def test_rows_that_trade_places_give_another_sum(count: int, first: int, data: st.DataObject) -> None:
    epochs = np.zeros(count, np.int64)
    a, b = data.draw(st.lists(st.integers(0, count - 1), min_size=2, max_size=2, unique=True))
    order = np.arange(count)
    order[[a, b]] = order[[b, a]]
    before, after = (words_of(UIDS[rows], epochs, first).sum(axis=0) for rows in (np.arange(count), order))
    assert (before != after).all()
    later = words_of(UIDS[:count], epochs + 1, first).sum(axis=0)
    assert (before != later).all()


def test_a_replay_is_the_chain_link_by_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against plain integers, and in any number of steps at a time."""
    want, before = [], origin("k")
    for step in range(9):
        rows, epochs = rows_at(step * 12, 12, len(UIDS), "k")
        total = [sum(int(word) for word in lane) % 2**64 for lane in words_of(UIDS[rows], epochs, step * 12).T]
        packed = b"".join(value.to_bytes(8, "little") for value in total)
        before = hashlib.sha256(bytes.fromhex(before) + packed).hexdigest()[:16]
        want.append(before)
    assert list(replay(Samples(np.arange(len(UIDS))), UIDS, "k", 12, 9)) == want
    monkeypatch.setattr("sightline.pipelines.feed.ledger.BLOCK", 30)
    assert list(replay(Samples(np.arange(len(UIDS))), UIDS, "k", 12, 9)) == want
    assert link(origin("a"), np.zeros(2, np.int64)) != link(origin("b"), np.zeros(2, np.int64))


def test_a_run_is_held_against_its_plan(tmp_path: Path) -> None:
    folder = ingest_alone(digits_source(tmp_path / "source", train=36, val=2, test=2), tmp_path / "corpus")
    corpus = Corpus.open(folder)
    spec = find_recipe("clip_demo")
    spec = replace(spec, data=replace(spec.data, corpus=str(folder)), steps=9, global_batch=12)
    spec = resolve(spec, corpus, bf16_available=False)
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=r"no run that has begun: no run.json"):
        verify_run(run)
    run.mkdir()
    (run / "run.json").write_text(canonical_json(asdict(spec)))
    rows = corpus.select(spec.data.split)
    uids = np.frombuffer(b"".join(corpus.uid(int(row)) for row in rows), np.uint8).reshape(len(rows), 16)
    lines = [
        json.dumps({"step": i, "read": read})
        for i, read in enumerate(replay(Samples(np.arange(len(uids))), uids, spec.order_key, 12, 9), start=1)
    ]

    def write(lines: list[str]) -> None:
        (run / "metrics.jsonl").write_text("\n".join(lines))

    write([*lines[:5], *lines[3:], lines[0][:9]])  # resumed after step 3, killed while it wrote
    check = verify_run(run)
    assert (check.steps, check.samples, check.times, check.again, check.differs) == (9, 36, 3, 0, None)
    assert check.verdict == "each of 36 rows was read exactly 3 times"
    write(lines[:4])
    assert "36 rows was read exactly 1 times, and 12 of them once more" in verify_run(run).verdict
    write([*lines[:5], lines[5].replace('"read": "', '"read": "f'), *lines[6:]])
    assert verify_run(run).differs == 6
    write([*lines[:2], *lines[3:]])
    assert verify_run(run).differs == 3


def test_a_run_over_pairs_reads_each_of_them(digits: Corpus, tmp_path: Path) -> None:
    """Three workers' parts of the batches, added up, are the plan's links; and captions that trade places are noticed."""
    spec = find_recipe("clip_small")
    spec = replace(spec, data=replace(spec.data, corpus=digits.location, split="test"), steps=6, global_batch=12)
    spec = resolve(spec, digits, bf16_available=False)
    rows = digits.select("test")
    samples = samples_of(digits, rows, spec.data)
    assert spec.data.each == "pair" and len(samples) == sum(len(digits.captions(int(row))) for row in rows) > len(rows)
    feeds = [InlineFeed(lambda row, visit: no_pixels(digits, row), samples, spec.order_key, 12, own) for own in PARTS]
    read, lines = origin(spec.order_key), []
    for step, parts in enumerate(zip(*(feed.batches(0, 6) for feed in feeds), strict=True), start=1):
        read = link(read, sum(words_of(part.uids, part.visits, part.first).sum(axis=0) for part in parts))
        lines.append(json.dumps({"step": step, "read": read}))
    (tmp_path / "run.json").write_text(canonical_json(asdict(spec)))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    check = verify_run(tmp_path)
    assert check.differs is None and f"each of {len(samples)} pairs was read" in check.verdict
    same = np.repeat(UIDS[:1], 2, axis=0)  # two captions of one image that trade places
    first, other = (words_of(same, np.array(visits), 0).sum(axis=0) for visits in ([3, 4], [4, 3]))
    assert (first != other).all()


PARTS = (slice(0, 5), slice(5, 6), slice(6, 12))


def no_pixels(corpus: Corpus, row: int) -> Sample:
    return torch.empty(0), "", corpus.uid(row)
