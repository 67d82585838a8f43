"""A corpus on disk, without Ray: plan, shards, commit and reader against plain Python."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.gc import collect
from sightline.pipelines.corpus.manifest import read_manifest, read_shards
from sightline.pipelines.corpus.plan import Plan, config_name, default_shard_rows, make_plan, plan_ids, read_chunk, save_plan
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Rejected, Row, make_row
from sightline.pipelines.corpus.shards import ShardRecord, done_records, write_shard
from sightline.pipelines.corpus.store import LocalStore, Store, open_store
from sightline.pipelines.corpus.verify import verify

KEYS = pa.schema([("key", pa.string())])


def example(number: int) -> Row:
    """Rows with and without captions, labels, masks and splits."""
    return make_row(
        key=f"{number:04d}",
        image=number.to_bytes(4, "big") * (number % 7 + 1),
        format="jpeg",
        width=number % 5 + 1,
        height=3,
        captions=tuple(f"caption {i}, of {number}" for i in range(number % 3)),
        labels=tuple(range(number % 4)),
        mask=None if number % 2 else b"mask" * (number % 9),
        source=f"images/{number}.jpg",
        extra=json.dumps({} if number % 11 == 0 else {"split": "val" if number % 10 == 0 else "train"}),
    )


def write_corpus(
    folder: Path, outcomes: Sequence[Row | Rejected], *, shard_rows: int = 300, classes: Iterable[tuple[int, str]] = ()
) -> Corpus:
    """A corpus of given outcomes, in their order."""
    store = LocalStore(folder)
    plan = make_plan([{"key": outcome.key} for outcome in outcomes], KEYS, {"test": 1}, seed=0, shard_rows=shard_rows)[0]
    records = {
        index: write_shard(store, plan.plan_id, index, outcomes[index * shard_rows : (index + 1) * shard_rows])
        for index in range(plan.shards)
    }
    commit_plan(store, plan, records, list(classes), {})
    return Corpus.open(folder)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [example(i) for i in range(700)]
    corpus = write_corpus(tmp_path / "corpus", rows)
    assert len(corpus) == corpus.rows == 700
    for i in [0, 1, 255, 256, 299, 300, 555, 556, 699]:
        assert corpus.row(i) == rows[i]
        assert bytes(corpus.image(i)) == rows[i].image
        assert corpus.mask(i) == rows[i].mask
        assert corpus.captions(i) == rows[i].captions


def test_an_image_is_a_view_of_unsigned_bytes_into_the_mapped_file(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [example(i) for i in range(10)])
    view = corpus.image(3)
    assert isinstance(view, memoryview)
    assert view.format == "B"
    assert view.readonly
    before = pa.total_allocated_bytes()
    views = [corpus.image(i) for i in range(10)]
    assert pa.total_allocated_bytes() == before
    assert views[3].obj is not None


def test_an_index_outside_of_the_corpus_is_an_index_error(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [example(i) for i in range(3)])
    for index in (-1, 3):
        with pytest.raises(IndexError):
            corpus.image(index)


def test_threads_may_share_a_corpus(tmp_path: Path) -> None:
    rows = [example(i) for i in range(900)]
    corpus = write_corpus(tmp_path / "corpus", rows, shard_rows=50)
    order = np.random.default_rng(0).integers(0, 900, 4_000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda i: bytes(corpus.image(i)) == rows[i].image, order))


def test_a_corpus_pickles_as_its_location_and_root(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [example(i) for i in range(5)])
    data = pickle.dumps(corpus)
    assert pickle.loads(data).row(4) == corpus.row(4)
    other = write_corpus(tmp_path / "other", [example(i) for i in range(6)])
    with pytest.raises(ValueError, match=r"root .* not"):
        Corpus.open(tmp_path / "corpus", root=other.root)


def test_the_sidecar_has_every_column_but_the_bytes_in_row_order(tmp_path: Path) -> None:
    rows = [example(i) for i in range(650)]
    corpus = write_corpus(tmp_path / "corpus", rows)
    table = corpus.sidecar()
    assert "image" not in table.column_names
    assert table.column("key").to_pylist() == [row.key for row in rows]
    assert table.column("captions").to_pylist() == [list(row.captions) for row in rows]
    assert table.column("nbytes").to_pylist() == [len(row.image) for row in rows]
    assert table.column("mask_nbytes").to_pylist() == [None if row.mask is None else len(row.mask) for row in rows]
    assert table.column("row").to_pylist() == [i % 300 for i in range(650)]
    assert corpus.sidecar(["width", "key"]).column_names == ["width", "key"]
    with pytest.raises(ValueError, match="no column 'image'"):
        corpus.sidecar(["image"])


def test_a_split_is_selected_by_what_stands_in_extra(tmp_path: Path) -> None:
    rows = [example(i) for i in range(650)]
    corpus = write_corpus(tmp_path / "corpus", rows)
    for split in ("train", "val"):
        expected = [i for i, row in enumerate(rows) if json.loads(row.extra).get("split") == split]
        assert corpus.select(split).tolist() == expected
        assert corpus.select(split).dtype == np.int64
        assert corpus.splits[split] == len(expected)
    assert corpus.select().tolist() == list(range(650))
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        corpus.select("test")


def test_a_corpus_without_splits_says_so(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [replace(example(i), extra="{}") for i in range(3)])
    assert corpus.splits == {}
    with pytest.raises(ValueError, match="no splits"):
        corpus.select("train")


def test_class_names_stand_at_their_ids(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [example(1)], classes=[(3, "cat"), (0, "background")])
    assert corpus.classes == ("background", "", "", "cat")
    assert write_corpus(tmp_path / "none", [example(1)]).classes == ()


def rejection(number: int, stage: str = "decode", code: str = "truncated") -> Rejected:
    return Rejected(number, f"{number:04d}", f"images/{number}.jpg", stage, code, "the reason", nbytes=7)


def test_rejected_inputs_stand_in_the_errors_table_and_in_the_totals(tmp_path: Path) -> None:
    outcomes: list[Row | Rejected] = [example(i) for i in range(400)]
    outcomes[5], outcomes[350], outcomes[351] = rejection(5), rejection(350, "filter", "sidecar_file"), rejection(351)
    corpus = write_corpus(tmp_path / "corpus", outcomes)
    manifest = corpus.manifest
    assert (manifest.seen, manifest.rows, manifest.rejected) == (400, 397, 3)
    assert manifest.codes == {"decode/truncated": 2, "filter/sidecar_file": 1}
    errors = [pq.read_table(path).to_pylist() for path in sorted((tmp_path / "corpus" / "errors").rglob("*.parquet"))]
    assert [row["plan_row"] for table in errors for row in table] == [5, 350, 351]
    assert errors[0][0] == {**vars(rejection(5))}
    assert corpus.row(5) == outcomes[6]


def test_a_corpus_may_have_lost_all_its_rows_to_errors(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [rejection(i) for i in range(3)])
    assert corpus.rows == 0
    assert corpus.select().size == 0
    assert corpus.splits == {}


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    rows = [example(i) for i in range(700)]
    first, second = (write_corpus(tmp_path / name, rows) for name in ("first", "second"))
    assert first.root == second.root
    shards = [read_shards(LocalStore(Path(corpus.location)), corpus.manifest.pages) for corpus in (first, second)]
    assert [shard.file for shard in shards[0]] == [shard.file for shard in shards[1]]
    assert [shard.sha256 for shard in shards[0]] == [shard.sha256 for shard in shards[1]]


def test_a_missing_corpus_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is no corpus: no manifest.json; write one with `sightline ingest"):
        Corpus.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="is no corpus"):
        Corpus.open(tmp_path / "file")


def test_an_unfinished_corpus_is_no_corpus(tmp_path: Path) -> None:
    write_shard(LocalStore(tmp_path), "0" * 12, 0, [example(1)])
    with pytest.raises(FileNotFoundError, match="unfinished"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("victim", ["data", "meta", "manifests/pages"])
def test_a_corpus_that_lost_a_file_is_incomplete(tmp_path: Path, victim: str) -> None:
    write_corpus(tmp_path, [example(i) for i in range(10)])
    next(path for path in (tmp_path / victim).rglob("*") if path.is_file()).unlink()
    with pytest.raises(FileNotFoundError, match="incomplete"):
        Corpus.open(tmp_path)


def test_a_truncated_shard_is_noticed_when_the_corpus_is_opened(tmp_path: Path) -> None:
    write_corpus(tmp_path, [example(i) for i in range(10)])
    shard = next((tmp_path / "data").rglob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(FileNotFoundError, match="another size"):
        Corpus.open(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path, [example(1)])
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("sightline/1", "sightline/2"))
    with pytest.raises(ValueError, match="'sightline/2', and this version of Sightline reads 'sightline/1'"):
        Corpus.open(tmp_path)
    manifest.write_text("[]")
    with pytest.raises(ValueError, match="no manifest"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("look", [verify, collect])
def test_a_corpus_of_another_format_is_not_taken_for_a_damaged_one(look: Callable[[Store], object], tmp_path: Path) -> None:
    write_corpus(tmp_path, [example(1)])
    for manifest in (tmp_path / "manifest.json", tmp_path / "manifests/gen-000001.json"):
        manifest.write_text(manifest.read_text().replace("sightline/1", "sightline/2"))
    with pytest.raises(ValueError, match="'sightline/2', and this version of Sightline reads 'sightline/1'; update Sightline"):
        look(open_store(tmp_path))


def test_a_url_without_a_file_system_names_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="no file system is known for nowhere://; give a path, s3://"):
        Corpus.open("nowhere://bucket/corpus")


# --- plan


def keys(count: int) -> list[dict[str, str]]:
    return [{"key": f"{number:05d}"} for number in range(count)]


def test_a_plan_is_saved_and_read_chunk_by_chunk(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    plan, table = make_plan(keys(25), KEYS, {}, seed=0, shard_rows=10)
    save_plan(store, plan, table)
    assert plan_ids(store) == [plan.plan_id]
    chunks = [[row["key"] for row in read_chunk(store, plan, index)] for index in range(plan.shards)]
    assert [len(chunk) for chunk in chunks] == [10, 10, 5]
    assert [key for chunk in chunks for key in chunk] == table.column("key").to_pylist()


def test_a_plan_id_names_input_and_configuration() -> None:
    def plan_id(rows: list[dict[str, str]], config: dict[str, int], seed: int = 0, shard_rows: int = 10) -> str:
        return make_plan(rows, KEYS, config, seed=seed, shard_rows=shard_rows)[0].plan_id

    base = plan_id(keys(25), {"a": 1})
    assert plan_id(keys(25)[::-1], {"a": 1}) == base
    others = [
        plan_id(keys(24), {"a": 1}),
        plan_id(keys(25), {"a": 2}),
        plan_id(keys(25), {"a": 1}, seed=1),
        plan_id(keys(25), {"a": 1}, shard_rows=11),
    ]
    assert len({base, *others}) == 5


def test_sorted_input_does_not_stay_sorted_and_the_seed_decides_its_order() -> None:
    orders = [make_plan(keys(500), KEYS, {}, seed=seed, shard_rows=None)[1].column("key").to_pylist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    first_chunk = {int(key) for key in orders[0][:100]}
    assert 150 < sum(first_chunk) / 100 < 350  # the mean of a fair draw from 0 to 499 is 250 +- 14


@pytest.mark.parametrize(
    ("rows", "shard_rows"),
    [(1, 256), (2_661, 256), (16_384, 256), (16_385, 512), (100_000, 1_792), (524_288, 8_192), (10**9, 8_192)],
)
def test_the_default_shard_size_aims_at_64_shards_of_whole_batches(rows: int, shard_rows: int) -> None:
    assert default_shard_rows(rows) == shard_rows


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([], {}, "nothing to ingest"),
        ([{"key": "a"}, {"key": "b"}, {"key": "a"}], {}, "'a' occurs twice"),
        ([{"key": "a"}], {"seed": -1}, "seed -1"),
        ([{"key": "a"}], {"shard_rows": 0}, "0 rows a shard"),
    ],
)
def test_what_cannot_be_planned_is_refused(rows: list[dict[str, str]], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(rows, KEYS, {}, **{"seed": 0, "shard_rows": None, **options})


# --- commit


def two_shards(store: LocalStore) -> tuple[Plan, dict[int, ShardRecord]]:
    rows = [example(i) for i in range(20)]
    plan = make_plan([{"key": row.key} for row in rows], KEYS, {}, seed=0, shard_rows=10)[0]
    return plan, {i: write_shard(store, plan.plan_id, i, rows[10 * i : 10 * i + 10]) for i in range(2)}


def test_a_shard_that_was_never_reported_fails_the_commit(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan, records = two_shards(store)
    with pytest.raises(AssertionError, match="never reported"):
        commit_plan(store, plan, {0: records[0]}, [], {})
    assert not (tmp_path / "manifest.json").exists()


def test_a_row_that_vanished_fails_the_commit(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan, records = two_shards(store)
    with pytest.raises(AssertionError, match="of 10 rows"):
        commit_plan(store, plan, {**records, 1: replace(records[1], rows=9, planned=9)}, [], {})


def test_a_file_that_vanished_fails_the_commit(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan, records = two_shards(store)
    (tmp_path / records[1].file).unlink()
    with pytest.raises(AssertionError, match="is not there"):
        commit_plan(store, plan, records, [], {})


def test_a_commit_that_died_halfway_is_finished_by_the_next(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan, records = two_shards(store)
    manifest = commit_plan(store, plan, records, [], {"seconds": 1})
    (tmp_path / "manifest.json").unlink()
    assert commit_plan(store, plan, records, [], {"seconds": 2}) == manifest == read_manifest(store)


def test_one_of_two_writers_wins_and_the_other_hears_of_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan, records = two_shards(store)
    commit_plan(store, plan, records, [], {})
    rows = [example(i) for i in range(20, 30)]
    other = make_plan([{"key": row.key} for row in rows], KEYS, {}, seed=0, shard_rows=10)[0]
    with pytest.raises(FileExistsError, match="another corpus"):
        commit_plan(store, other, {0: write_shard(store, other.plan_id, 0, rows)}, [], {})


def test_done_shards_are_found_again_unless_a_file_of_theirs_changed(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan, records = two_shards(store)
    assert done_records(store, plan.plan_id) == records
    (tmp_path / records[1].sidecar).write_bytes(b"")
    assert done_records(store, plan.plan_id) == {0: records[0]}


def test_a_commit_leaves_only_files_that_the_manifest_names(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    plan, records = two_shards(store)
    manifest = commit_plan(store, plan, records, [], {})
    named = {name for record in records.values() for name, _ in record.files()}
    named |= {"manifest.json", "manifests/gen-000001.json", *(page.file for page in manifest.pages)}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == named


def test_a_batch_ends_with_the_row_that_reaches_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.pipelines.corpus.shards.BATCH_BYTES", 3 * len(example(0).image))
    rows = [example(i) for i in range(20)]
    corpus = write_corpus(tmp_path, rows)
    (shard,) = (tmp_path / "data").rglob("*.arrow")
    with pa.ipc.open_file(str(shard)) as file:
        assert max(len(file.get_batch(i)) for i in range(file.num_record_batches)) < 5
        assert file.num_record_batches > 5
    assert [bytes(corpus.image(i)) for i in range(20)] == [row.image for row in rows]
    assert [corpus.row(i).key for i in range(20)] == [row.key for row in rows]


@pytest.mark.parametrize(
    ("said", "expected"), [([], 64_000_000), ([70_000_000], 70_000_000), ([10**12], 178_000_000), (["many"], 64_000_000)]
)
def test_images_may_be_as_large_as_its_ingest_let_them_be(said: list[object], expected: int, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, [example(0)])
    for number in said:
        config = json.dumps({"config": {"max_pixels": number}})
        open_store(tmp_path).replace(config_name(corpus.manifest.plan_ids[0]), config.encode())
    assert corpus.max_pixels == expected
