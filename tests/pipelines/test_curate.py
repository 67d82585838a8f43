"""Filters against plain loops; near duplicates against all pairs; nothing may depend on the rows' order or sharding."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.pipelines.corpus.columns import read_column, read_mask
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Row, make_row
from sightline.pipelines.curate import duplicates
from sightline.pipelines.curate.against import Against
from sightline.pipelines.curate.duplicates import bands, cheapest_tables, first_of_each, near_groups, near_pairs, tables
from sightline.pipelines.curate.filters import FilterSpec, make_filter
from sightline.pipelines.curate.rules import RowRules
from sightline.pipelines.curate.score import score_alone
from sightline.pipelines.curate.scorers import PerceptualHash
from tests.conftest import CommandLine
from tests.pipelines.test_columns import corpus_of

ENGLISH = "two brown dogs are running through the high grass behind the house"
GERMAN = "zwei braune Hunde laufen durch das hohe Gras hinter dem alten Haus"


def random_row(number: int, chance: random.Random) -> Row:
    captions = [
        " ".join(chance.choices(["red", "ä", "one-two", "  blue"], k=chance.randint(0, 6))) for _ in range(chance.randint(0, 3))
    ]
    return make_row(
        key=f"{number:03d}",
        image=b"%d" % chance.randint(0, 20),
        format=chance.choice(["jpeg", "png", "webp"]),
        width=chance.randint(1, 40),
        height=chance.randint(1, 40),
        captions=tuple(captions),
        extra=chance.choice(["{}", '{"split":"train"}', '{"split":"val"}']),
    )


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    chance = random.Random(0)
    return [random_row(i, chance) for i in range(80)]


@pytest.fixture(scope="module")
def corpus(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return corpus_of(tmp_path_factory.mktemp("rules"), rows)


def lengths(row: Row, length: Callable[[str], int], low: int, high: int) -> bool:
    return bool(row.captions) and all(low <= length(text) <= high for text in row.captions)


@pytest.mark.parametrize(
    ("rules", "holds"),
    [
        (RowRules(min_side=10), lambda row: min(row.width, row.height) >= 10),
        (RowRules(max_side=30), lambda row: max(row.width, row.height) <= 30),
        (RowRules(min_pixels=300), lambda row: row.width * row.height >= 300),
        (RowRules(max_pixels=300), lambda row: row.width * row.height <= 300),
        (RowRules(max_aspect=1.5), lambda row: max(row.width, row.height) <= 1.5 * min(row.width, row.height)),
        (RowRules(caption_chars=(4, 12)), lambda row: lengths(row, len, 4, 12)),
        (RowRules(caption_words=(2, None)), lambda row: lengths(row, lambda text: len(text.split()), 2, 99)),
        (RowRules(formats=("png", "webp")), lambda row: row.format in ("png", "webp")),
        (RowRules(splits=("val",)), lambda row: '"val"' in row.extra),
        (RowRules(min_side=10, splits=("val",)), lambda row: min(row.width, row.height) >= 10 and '"val"' in row.extra),
    ],
)
def test_a_rule_on_rows_is_the_plain_loop(rules: RowRules, holds: Callable[[Row], bool], corpus: Corpus, rows: list[Row]) -> None:
    info = make_filter(corpus, "x", FilterSpec(rows=rules))
    expected = [holds(row) for row in rows]
    assert any(expected) and not all(expected)
    assert read_mask(corpus, "x").tolist() == expected
    assert info.counts["passed"] == sum(expected)
    costs = [count for name, count in info.counts.items() if name.startswith("cost/")]
    assert max(costs) <= len(rows) - sum(expected) <= sum(costs)


def test_a_language_is_that_of_all_captions_together(tmp_path: Path) -> None:
    captions = [(ENGLISH,), (GERMAN,), (), ("two dogs run", ENGLISH)]
    corpus = corpus_of(
        tmp_path,
        [make_row(key=str(i), image=b"x", format="jpeg", width=1, height=1, captions=texts) for i, texts in enumerate(captions)],
    )
    for languages, expected in ((("en",), [True, False, False, True]), (("de", "en"), [True, True, False, True])):
        make_filter(corpus, "x", FilterSpec(rows=RowRules(languages=languages)))
        assert read_mask(corpus, "x").tolist() == expected
    with pytest.raises(ValueError, match="no language 'english'"):
        FilterSpec(rows=RowRules(languages=("english",)))


@pytest.mark.parametrize("kind", ["exact", "pairs"])
def test_of_equal_rows_the_smallest_uid_stays(kind: str, corpus: Corpus, rows: list[Row]) -> None:
    make_filter(corpus, "x", FilterSpec(duplicates=kind))  # type: ignore[arg-type]
    groups: dict[bytes, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.sha256 if kind == "exact" else row.uid, []).append(row)
    kept = {min(group, key=lambda row: (row.uid, row.key)).key for group in groups.values()}
    assert len(kept) < len(rows)
    assert read_mask(corpus, "x").tolist() == [row.key in kept for row in rows]


def close(a: int, b: int, distance: int) -> bool:
    return (a ^ b).bit_count() <= distance


def components(hashes: Sequence[int], distance: int) -> list[set[int]]:
    """By growing each group over all pairs until nothing changes."""
    groups = [{i} for i in range(len(hashes))]
    for i in range(len(hashes)):
        for j in range(i):
            if close(hashes[i], hashes[j], distance) and groups[i] is not groups[j]:
                united = groups[i] | groups[j]
                for member in united:
                    groups[member] = united
    return groups


@st.composite
def near_hashes(draw: st.DrawFn) -> list[int]:
    """Hashes around a few centres, so that there are close ones at all."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    flips = st.lists(st.integers(0, 63), max_size=8)
    drawn = draw(st.lists(st.tuples(st.sampled_from(centres), flips), max_size=40))
    return [centre ^ sum(1 << bit for bit in set(bits)) for centre, bits in drawn]


@settings(max_examples=60, deadline=None)
@given(near_hashes(), st.integers(0, 15))
def test_near_groups_are_those_of_all_pairs(hashes: list[int], distance: int) -> None:
    found = near_groups(np.array(hashes, dtype=np.uint64), distance).tolist()
    groups = [{j for j in range(len(found)) if found[j] == found[i]} for i in range(len(found))]
    assert groups == components(hashes, distance)


@settings(max_examples=40, deadline=None)
@given(near_hashes(), near_hashes(), st.integers(0, 15))
def test_near_pairs_are_all_pairs(left: list[int], right: list[int], distance: int) -> None:
    found = {
        (int(i), int(j))
        for a, b in near_pairs(np.array(left, dtype=np.uint64), np.array(right, dtype=np.uint64), distance)
        for i, j in zip(a, b, strict=True)
    }
    assert found == {(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if close(a, b, distance)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.lists(st.floats(1e-6, 7), min_size=64, max_size=64))
def test_bands_are_a_partition_of_the_bits(count: int, weights: list[float]) -> None:
    masks = [int(mask) for mask in bands(count, weights)]
    assert len(masks) == count
    assert sum(masks) == 2**64 - 1 and sum(mask.bit_count() for mask in masks) == 64


def test_bands_of_even_bits_are_even() -> None:
    assert [int(mask).bit_count() for mask in bands(8, [1.0] * 64)] == [8] * 8
    useless = [1e-6] * 32 + [1.0] * 32
    assert [int(mask).bit_count() for mask in bands(4, useless)] == [40, 8, 8, 8]


@settings(max_examples=40, deadline=None)
@given(near_hashes(), near_hashes(), st.integers(0, 6), st.integers(-1, 2), st.sampled_from([2, 7]))
def test_any_tables_and_any_blocks_give_all_pairs(
    left: list[int], right: list[int], distance: int, agreeing: int, block: int
) -> None:
    a, b = np.array(left + left[:9], dtype=np.uint64), np.array(right * 2, dtype=np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "BLOCK", block)
        patch.setattr(duplicates, "FEW", 0)  # every large bucket is cut anew
        if agreeing >= 0:
            patch.setattr(duplicates, "cheapest_tables", lambda *_: tables(distance, agreeing, np.ones(64)))
        found = {(int(i), int(j)) for one, other in near_pairs(a, b, distance) for i, j in zip(one, other, strict=True)}
        together = near_groups(np.concatenate([a, b]), distance).tolist()
    assert found == {(i, j) for i, x in enumerate(a) for j, y in enumerate(b) if close(int(x), int(y), distance)}
    groups = [{j for j in range(len(together)) if together[j] == together[i]} for i in range(len(together))]
    assert groups == components([*map(int, a), *map(int, b)], distance)


@settings(max_examples=40, deadline=None)
@given(near_hashes(), near_hashes(), st.integers(0, 15))
def test_a_match_has_the_fewest_bits_and_then_the_first_name(ours: list[int], theirs: list[int], distance: int) -> None:
    theirs += theirs[:7]
    names = [f"root:{i:02d}" for i in range(len(theirs))]
    hashes = [np.array(each, dtype=np.uint64) for each in (ours, theirs)]
    against = Against(["root"], distance, names, hashes[1], {b"same bytes": "root:x"})
    found = against.matches([b"same bytes" if i == 3 else b"" for i in range(len(ours))], hashes[0])
    for i, mine in enumerate(ours):
        best = min(((mine ^ other).bit_count(), name) for other, name in zip(theirs, names, strict=True)) if theirs else (99, "")
        assert found[i] == ("root:x" if i == 3 else best[1] if best[0] <= distance else None)


@pytest.mark.parametrize("skew", ["one hash", "few bits", "half the bits"])
def test_many_equal_and_near_hashes_are_grouped_as_by_comparing_all(skew: str) -> None:
    chance = np.random.default_rng(0)
    hashes = chance.integers(0, 2**64, 6_000, dtype=np.uint64)
    hashes[:1_500] = hashes[0]
    if skew == "few bits":
        for _ in range(4):
            hashes[:1_500] ^= np.uint64(1) << chance.integers(0, 64, 1_500).astype(np.uint64)
    elif skew == "half the bits":
        hashes[:1_500] ^= chance.integers(0, 2**32, 1_500, dtype=np.uint64)
    hashes[1_500:3_000] = hashes[3_000:4_500] ^ (np.uint64(1) << chance.integers(0, 64, 1_500).astype(np.uint64))
    chance.shuffle(hashes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "FEW", 0)  # so few would not need tables
        distinct = np.unique(hashes)
        assert len(cheapest_tables(distinct, distinct, 6)) > 1
        found = near_groups(hashes, 6)
    expected = np.arange(len(hashes))
    for i in range(len(hashes)):  # each row with its neighbours
        reached = np.unique(expected[np.bitwise_count(hashes ^ hashes[i]) <= 6])
        expected[np.isin(expected, reached)] = reached[0]
    assert len(np.unique(found)) == len(np.unique(expected)) == len(np.unique(np.stack([found, expected]), axis=1).T)


def test_memory_grows_with_the_rows_and_not_with_the_pairs() -> None:
    chance = np.random.default_rng(0)
    hashes = np.full(20_000, 7, dtype=np.uint64)
    for _ in range(5):  # all within 10 bits: 200 million pairs
        hashes ^= np.uint64(1) << chance.integers(0, 64, len(hashes)).astype(np.uint64)
    tracemalloc.start()
    try:
        near_groups(hashes, 6)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=30), st.randoms())
def test_one_of_each_group_stays(groups: list[int], chance: random.Random) -> None:
    places = chance.sample(range(len(groups)), len(groups))
    kept = first_of_each(np.array(groups, dtype=np.int64), np.array(places, dtype=np.int64))
    assert kept.tolist() == [
        place == min(p for p, g in zip(places, groups, strict=True) if g == group)
        for place, group in zip(places, groups, strict=True)
    ]


def picture(seed: int, *, quality: int = 95, size: int = 64) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).resize((size, size)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def picture_rows() -> list[Row]:
    """Twenty pictures, every third of them again in another quality, every fourth in another size."""
    images = [picture(seed) for seed in range(20)]
    images += [picture(seed, quality=60) for seed in range(0, 20, 3)] + [picture(seed, size=90) for seed in range(0, 20, 4)]
    return [
        make_row(key=f"{i:02d}", image=image, format="jpeg", width=64, height=64, captions=(f"picture {i}",))
        for i, image in enumerate(images)
    ]


@pytest.mark.parametrize("shard_rows", [3, 100])
def test_copies_of_pictures_are_found_in_any_order_and_sharding(shard_rows: int, tmp_path: Path) -> None:
    rows = picture_rows()
    kept = []
    for name, ordered in (("a", rows), ("b", random.Random(1).sample(rows, len(rows)))):
        corpus = corpus_of(tmp_path / name, ordered, shard_rows)
        score_alone(corpus, "phash", PerceptualHash())
        info = make_filter(corpus, "nodup", FilterSpec(duplicates="near"))
        assert info.counts["passed"] == 20
        kept.append({row.key for row, stays in zip(ordered, read_mask(corpus, "nodup"), strict=True) if stays})
    assert kept[0] == kept[1]


def test_images_of_another_corpus_are_found_and_named(tmp_path: Path) -> None:
    rows = picture_rows()
    corpus = corpus_of(tmp_path / "train", rows)
    judged = corpus_of(
        tmp_path / "eval",
        [
            make_row(key="same", image=bytes(rows[1].image), format="jpeg", width=64, height=64, captions=("other words",)),
            make_row(key="alike", image=picture(2, quality=50), format="jpeg", width=64, height=64),
            make_row(key="new", image=picture(99), format="jpeg", width=64, height=64),
        ],
    )
    spec = FilterSpec(against=(str(tmp_path / "eval"),))
    for opened in (judged, corpus):
        with pytest.raises(ValueError, match="no perceptual hashes; run `sightline corpus score"):
            make_filter(corpus, "clean", spec)
        score_alone(opened, "phash", PerceptualHash())
    make_filter(corpus, "clean", spec)
    assert np.flatnonzero(~read_mask(corpus, "clean")).tolist() == [1, 2]
    matched = read_column(corpus, "clean-match").to_pylist()
    assert {i: name for i, name in enumerate(matched) if name} == {1: f"{judged.root[:12]}:same", 2: f"{judged.root[:12]}:alike"}


def test_only_new_shards_are_judged_after_an_append_unless_rows_are_compared(tmp_path: Path) -> None:
    rows = picture_rows()
    corpus_of(tmp_path, rows[:20], 5)
    row_rule, compared = FilterSpec(rows=RowRules(caption_words=(1, None))), FilterSpec(duplicates="pairs")
    for name, spec in (("words", row_rule), ("pairs", compared)):
        make_filter(Corpus.open(tmp_path), name, spec)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "columns").rglob("*.parquet")}
    grown = corpus_of(tmp_path, rows[20:], 5, change="append")
    for name, spec in (("words", row_rule), ("pairs", compared)):
        assert make_filter(grown, name, spec).counts["passed"] == len(rows)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    new = set((tmp_path / "columns").rglob("*.parquet")) - set(before)
    assert sum("words" in str(path) for path in new) == 3 and sum("pairs" in str(path) for path in new) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FilterSpec(score="x"), "--min, --max or --top"),
        (lambda: FilterSpec(top=0.5), "--score"),
        (lambda: FilterSpec(score="x", top=1.5), "share"),
        (lambda: FilterSpec(duplicates="near", distance=20), "0 to 15"),
        (lambda: RowRules(max_aspect=0.5), "at least 1"),
        (lambda: RowRules(min_side=0), "at least 1"),
        (lambda: RowRules(caption_words=(5, 2)), "LEAST:MOST"),
    ],
)
def test_conditions_that_make_no_sense_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_filter_needs_a_condition_and_its_columns(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="at least one condition"):
        make_filter(corpus, "x", FilterSpec())
    with pytest.raises(ValueError, match="no perceptual hashes"):
        make_filter(corpus, "x", FilterSpec(duplicates="near"))
    with pytest.raises(ValueError, match="no column 'clip'"):
        make_filter(corpus, "x", FilterSpec(score="clip", top=0.5))
    make_filter(corpus, "mask", FilterSpec(rows=RowRules(min_side=2)))
    with pytest.raises(ValueError, match="holds bool and no scores"):
        make_filter(corpus, "x", FilterSpec(score="mask", top=0.5))
    assert isinstance(read_column(corpus, "mask"), pa.ChunkedArray)


def test_the_command_says_what_passes_and_what_it_costs(cli: CommandLine, corpus: Corpus, rows: list[Row]) -> None:
    done = cli("corpus", "filter", corpus.location, "small", "--max-side", 30, "--caption-words", "1:", "--json")
    passed = sum(max(row.width, row.height) <= 30 and lengths(row, lambda text: len(text.split()), 1, 99) for row in rows)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["passed"], result["rows"], set(result["costs"])) == (passed, 80, {"max_side", "caption_words"})
    assert f"{passed} of 80 rows pass small" in done.stderr
    refused = cli("corpus", "filter", corpus.location, "x", "--caption-words", "many")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "give LEAST:MOST" in refused.stderr
