"""An export holds all of the corpus: rows rebuilt from its files, by plain readers of those formats, have the same fingerprint."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.models.codec import probe
from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.corpus.digests import fingerprint, fingerprint_hex, row_digest
from sightline.pipelines.corpus.plan import make_plan
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Row, canonical_json, make_row
from sightline.pipelines.corpus.shards import write_shard
from sightline.pipelines.corpus.store import LocalStore
from sightline.pipelines.export import webdataset
from sightline.pipelines.export.export import REPORT, TARGETS, export
from sightline.pipelines.export.folder import COLUMNS
from sightline.pipelines.ingest.sources.detect import open_source
from tests.corpora import ingest_alone

CLASSES = [(0, "cat"), (1, "dog"), (5, "fox, red"), (6, "dog")]
KEYS = pa.schema([("key", pa.string())])
Read = Callable[[Path, str], Row]


def picture(format: str, width: int, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, 2)).save(buffer, format)
    return buffer.getvalue()


def sample_row(key: str, image: bytes, masked: bool = False, **fields: Any) -> Row:
    info = probe(image)
    if masked:
        fields["mask"] = picture("PNG", info.width, "L")
    return make_row(key=key, image=image, format=info.format, width=info.width, height=info.height, **fields)


TEXT = st.text(max_size=12)  # any Unicode but surrogates
ODD_KEYS = st.sampled_from(
    ["", ".", "..", "../../etc/passwd", "/a/b.jpg", "a\0b", "CON", "x" * 10_000, "a.b.c", "ảnh chó.jpg", "a\nb"]
)
IMAGES = [picture("JPEG", 3), picture("PNG", 5), picture("WEBP", 1), picture("GIF", 2), picture("TIFF", 2)]
ROWS = st.builds(
    sample_row,
    key=TEXT | ODD_KEYS,
    image=st.sampled_from(IMAGES),
    masked=st.booleans(),
    captions=st.lists(st.text(min_size=1, max_size=12), max_size=3).map(tuple),
    labels=st.lists(st.sampled_from([0, 1, 5, 6, 9]), max_size=3, unique=True).map(tuple),
    extra=st.dictionaries(TEXT.filter(lambda name: name not in COLUMNS), st.none() | st.integers() | TEXT, max_size=2)
    .map(lambda extra: extra | ({"split": str(extra["split"])} if extra.get("split") is not None else {}))
    .map(canonical_json),
)


def corpus_of(folder: Path, rows: Sequence[Row], classes: list[tuple[int, str]] | None = None) -> Corpus:
    store = LocalStore(folder)
    plan = make_plan([{"key": str(i)} for i in range(len(rows))], KEYS, {}, seed=0, shard_rows=4)[0]
    records = {i: write_shard(store, plan.plan_id, i, rows[4 * i : 4 * i + 4]) for i in range(plan.shards)}
    commit_plan(store, plan, records, CLASSES if classes is None else classes, {})
    return Corpus.open(folder)


# --- plain readers, one a format: every row of an export


def rows_of_tars(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = defaultdict(dict)
        with tarfile.open(path) as tar:
            for member in tar:
                name, _, ending = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                samples[name][ending] = file.read()
        for sample in samples.values():
            about, mask = json.loads(sample.pop("json")), sample.pop("mask.png", None)
            first = sample.pop("txt", None)
            assert first == (about["captions"][0].encode() if about["captions"] else None)
            (image,) = sample.values()
            yield rebuilt({**about, "extra": canonical_json(about["extra"])}, image, mask)


def rows_of_parquet(folder: Path) -> Iterator[Row]:
    for path in sorted((folder / "data").glob("*.parquet")):
        for row in pq.read_table(path, partitioning=None).to_pylist():
            yield rebuilt(row, row["image"]["bytes"], row["mask"] and row["mask"]["bytes"])


def rows_of_folder(folder: Path) -> Iterator[Row]:
    with (folder / "classes.csv").open(newline="", encoding="utf-8") as file:
        ids = {row["name"]: int(row["id"]) for row in csv.DictReader(file)}
    for text in (folder / "captions.jsonl").read_bytes().splitlines():
        line = json.loads(text)
        extra = {name: value for name, value in line.items() if name not in COLUMNS}
        mask = line["mask"] and (folder / line["mask"]).read_bytes()
        about = {**line, "labels": [ids[name] for name in line["labels"]], "extra": canonical_json(extra)}
        yield rebuilt(about, (folder / line["image"]).read_bytes(), mask)


def rebuilt(about: dict[str, Any], image: bytes, mask: bytes | None) -> Row:
    texts = {"captions": tuple(about["captions"]), "labels": tuple(about["labels"]), "extra": about["extra"]}
    return sample_row(about["key"], image, mask=mask, **texts)


READERS = {"webdataset": rows_of_tars, "parquet": rows_of_parquet, "folder": rows_of_folder}


def print_of(rows: Iterable[Row]) -> str:
    return fingerprint_hex(fingerprint(row_digest(row) for row in rows))


# --- the law


@pytest.mark.parametrize("to", TARGETS)
@settings(max_examples=12, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=9), st.integers(1, 5))
def test_an_export_holds_every_row_whole(to: str, rows: list[Row], rows_per_file: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus, dest = corpus_of(Path(name) / "corpus", rows), Path(name) / "export"
        report = export(corpus, str(dest), to, rows_per_file=rows_per_file)
        assert report.rows == len(rows)
        assert print_of(READERS[to](dest)) == corpus.manifest.fingerprint
        assert {path.relative_to(dest).parts[0] for path in dest.rglob("*")}.isdisjoint({"..", "_staging"})


@pytest.mark.parametrize("to", TARGETS)
@settings(max_examples=8, deadline=None)
@given(st.lists(ROWS.filter(lambda row: row.key != ""), min_size=1, max_size=6, unique_by=lambda row: row.key))
def test_ingesting_an_export_of_odd_rows_gives_them_back(to: str, rows: list[Row]) -> None:
    with tempfile.TemporaryDirectory() as name:
        corpus, dest = corpus_of(Path(name) / "corpus", rows), Path(name) / "export"
        export(corpus, str(dest), to)
        again = Corpus.open(ingest_alone(dest, Path(name) / "again"))
        assert again.manifest.fingerprint == corpus.manifest.fingerprint


@pytest.mark.parametrize("to", TARGETS)
def test_ingesting_an_export_gives_the_same_rows(to: str, digits: Corpus, tmp_path: Path) -> None:
    export(digits, str(tmp_path / "export"), to)
    again = Corpus.open(ingest_alone(tmp_path / "export", tmp_path / "again"))
    assert again.manifest.fingerprint == digits.manifest.fingerprint
    assert again.splits == digits.splits
    assert again.classes == digits.classes


# --- what each format promises


@pytest.mark.parametrize("to", TARGETS)
def test_a_split_can_be_exported_alone(to: str, digits: Corpus, tmp_path: Path) -> None:
    report = export(digits, str(tmp_path), to, split="val")
    wanted = [digits.row(int(row)) for row in digits.select("val")]
    assert report.rows == len(wanted) == 20
    assert print_of(READERS[to](tmp_path)) == print_of(wanted)


def test_tar_files_are_the_same_bytes_each_time_and_name_no_one(digits: Corpus, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(digits, str(tmp_path / name), "webdataset", rows_per_file=100)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    train, test = [f"train-{i:06d}.tar" for i in range(3)], [f"test-{i:06d}.tar" for i in range(2)]
    assert files == sorted([*train, *test, "val-000000.tar", "classes.csv", "export.json"])
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(tmp_path / "a" / "val-000000.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


def test_webdatasets_own_reader_finds_the_samples(digits: Corpus, tmp_path: Path) -> None:
    peer = pytest.importorskip("webdataset")
    export(digits, str(tmp_path), "webdataset", split="val")
    samples = list(peer.WebDataset(str(tmp_path / "val-000000.tar"), shardshuffle=False))
    assert len(samples) == 20
    assert {PurePosixPath(sample["__key__"]).suffix for sample in samples} == {""}
    assert all({"jpg", "json", "txt", "mask.png"} <= set(sample) for sample in samples)


def test_parquet_says_in_its_schema_what_is_an_image_and_what_the_classes_are_called(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", [sample_row("k", IMAGES[0], labels=(5,), extra='{"split":"train"}')])
    export(corpus, str(tmp_path / "export"), "parquet")
    schema = pq.read_schema(tmp_path / "export/data/train-00000-of-00001.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == features["mask"] == {"_type": "Image"}
    names = features["labels"]["feature"]["names"]
    assert names[0] == "cat" and names[5] == "fox, red" and len(set(names)) == len(names) == 7


def test_row_groups_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.pipelines.export.parquet.GROUP_BYTES", 2 * len(IMAGES[0]))
    corpus = corpus_of(tmp_path / "corpus", [sample_row(str(i), IMAGES[0]) for i in range(7)])
    export(corpus, str(tmp_path / "export"), "parquet")
    file = pq.ParquetFile(tmp_path / "export/data/data-00000-of-00001.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 2, 2, 1]


def test_splits_of_any_name_get_files_of_their_own(tmp_path: Path) -> None:
    splits = ["data", "../up", "a/b", "a b", "train"]
    rows = [sample_row(name, IMAGES[0], extra=canonical_json({"split": name})) for name in splits]
    corpus = corpus_of(tmp_path / "corpus", [*rows, sample_row("none", IMAGES[0])])
    export(corpus, str(tmp_path / "export"), "parquet")
    assert len(list((tmp_path / "export/data").iterdir())) == 6
    assert print_of(rows_of_parquet(tmp_path / "export")) == corpus.manifest.fingerprint


def test_an_export_goes_to_any_file_system(digits: Corpus) -> None:
    import fsspec

    export(digits, "memory://export/tars", "webdataset", split="val")
    memory = fsspec.filesystem("memory")
    assert sorted(PurePosixPath(name).name for name in memory.find("/export/tars")) == [
        "classes.csv",
        "export.json",
        "val-000000.tar",
    ]
    with pytest.raises(FileExistsError, match="not empty"):
        export(digits, "memory://export/tars", "webdataset", split="val")


def test_an_export_to_s3_is_what_a_local_one_is(digits: Corpus, tmp_path: Path, s3: Callable[[], str]) -> None:
    import fsspec

    url = f"{s3()}/tars"
    for dest in (url, str(tmp_path)):
        export(digits, dest, "webdataset", split="val")
    bucket, root = fsspec.url_to_fs(url)
    assert {path.name for path in tmp_path.iterdir()} == {PurePosixPath(name).name for name in bucket.find(root)}
    assert bucket.cat_file(f"{root}/val-000000.tar") == (tmp_path / "val-000000.tar").read_bytes()
    with pytest.raises(FileExistsError, match="not empty"):
        export(digits, url, "webdataset", split="val")


# --- what goes wrong


def test_an_interrupted_export_leaves_whole_files_and_no_report(
    digits: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def die_in_the_third(path: Path, rows: Iterable[tuple[int, Row]], classes: dict[int, str]) -> None:
        webdataset.write_part(path, rows, classes)
        written.append(path.name)
        if len(written) == 3:
            path.write_bytes(path.read_bytes()[:1_000])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("sightline.pipelines.export.export.WRITERS", {"webdataset": die_in_the_third})
    with pytest.raises(OSError, match="No space"):
        export(digits, str(tmp_path), "webdataset", rows_per_file=50)
    tars = [path for path in tmp_path.rglob("*") if path.is_file()]
    tars = [path for path in tars if path.suffix == ".tar"]
    assert len(tars) == 2
    assert all(len(tarfile.open(path).getnames()) == 200 for path in tars)  # noqa: SIM115 - four members a sample


def interrupted(corpus: Corpus, dest: Path, to: str, after: int) -> dict[str, int]:
    """Begin an export and end it after some rows; the files that it leaves, as inodes."""

    def interrupt(done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(corpus, str(dest), to, rows_per_file=30, progress=interrupt)
    assert not (dest / "export.json").exists()
    return files_of(dest)


def files_of(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", TARGETS)
def test_the_same_command_finishes_an_interrupted_export_without_doing_again_what_was_done(
    to: str, digits: Corpus, tmp_path: Path
) -> None:
    seen: list[int] = []
    whole, dest = tmp_path / "whole", tmp_path / "dest"
    expected = export(digits, str(whole), to, rows_per_file=30)
    interrupted(digits, dest, to, 20)
    left = interrupted(digits, dest, to, 100)
    assert left
    with pytest.raises(ValueError, match="an export that was interrupted"):
        open_source(dest)
    assert export(digits, str(dest), to, rows_per_file=30, progress=lambda done, _: seen.append(done)) == expected
    assert seen == list(range(1, 381))
    after = files_of(dest)
    assert {name for name, inode in left.items() if after.get(name) != inode} == {"_staging/export.json"}
    assert set(after) == set(files_of(whole))
    assert all((dest / name).read_bytes() == (whole / name).read_bytes() for name in after)


def test_an_interrupted_export_goes_on_in_any_file_system(digits: Corpus, s3: Callable[[], str], tmp_path: Path) -> None:
    import fsspec

    def interrupt(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    url = f"{s3()}/tars"
    with pytest.raises(KeyboardInterrupt):
        export(digits, url, "webdataset", split="val", rows_per_file=8, progress=interrupt)
    for dest in (url, str(tmp_path)):
        export(digits, dest, "webdataset", split="val", rows_per_file=8)
    bucket, root = fsspec.url_to_fs(url, use_listings_cache=False)
    assert {path.name for path in tmp_path.iterdir()} == {PurePosixPath(name).name for name in bucket.find(root)}
    assert all(bucket.cat_file(f"{root}/{path.name}") == path.read_bytes() for path in tmp_path.iterdir())


def test_another_export_does_not_finish_what_is_there(digits: Corpus, tmp_path: Path) -> None:
    interrupted(digits, tmp_path, "webdataset", 100)
    for other in ({"to": "parquet"}, {"to": "webdataset", "rows_per_file": 31}, {"to": "webdataset", "split": "val"}):
        with pytest.raises(
            FileExistsError, match=r"an unfinished export of another kind \(corpus_root .*, to webdataset, rows_per"
        ):
            export(digits, str(tmp_path), **{"rows_per_file": 30, **other})  # type: ignore[arg-type]
    export(digits, str(tmp_path), "webdataset", rows_per_file=30)
    with pytest.raises(FileExistsError, match="not empty"):
        export(digits, str(tmp_path), "webdataset", rows_per_file=30)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"captions": ("a", "")}, "an empty caption"),
        ({"labels": (1, 1)}, "one label twice"),
        ({"extra": '{"image":"other.jpg"}'}, "the field 'image'"),
    ],
)
def test_what_a_captions_table_cannot_hold_is_refused_there_and_fits_the_others(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    corpus = corpus_of(tmp_path / "corpus", [sample_row("k", IMAGES[0], **fields)])
    with pytest.raises(ValueError, match=f"'k' has {words}.*export to parquet or webdataset"):
        export(corpus, str(tmp_path / "folder"), "folder")
    for to in ("webdataset", "parquet"):
        export(corpus, str(tmp_path / to), to)
        assert print_of(READERS[to](tmp_path / to)) == corpus.manifest.fingerprint


@pytest.mark.parametrize("to", TARGETS)
def test_a_damaged_row_is_named_and_not_written(to: str, tmp_path: Path) -> None:
    rows = [make_row(key=f"k{i}", image=picture("PNG", 8 + i), format="png", width=8 + i, height=8) for i in range(4)]
    corpus = corpus_of(tmp_path / "corpus", rows)
    data = bytearray((place := tmp_path / "corpus" / corpus.shards[0].file).read_bytes())
    data[data.index(bytes(rows[2].image)) + 30] ^= 1
    place.write_bytes(data)
    damaged = Corpus.open(corpus.location)
    assert {damaged.checked_row(i).key for i in (0, 1, 3)} == {"k0", "k1", "k3"}
    with pytest.raises(ValueError, match=r"row 2 \('k2'\) of .* is damaged.*; see `sightline corpus verify"):
        export(damaged, str(tmp_path / "out"), to)
    assert not (tmp_path / "out" / REPORT).exists()


def test_a_row_with_a_mask_does_not_leave_a_damaged_shard(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "corpus", [sample_row("k", picture("PNG", 8), masked=True)])
    place, mask = tmp_path / "corpus" / corpus.shards[0].file, bytes(corpus.mask(0) or b"")
    data = bytearray(place.read_bytes())
    data[data.index(mask) + 30] ^= 1
    place.write_bytes(data)
    with pytest.raises(ValueError, match="or its mask may be"):
        Corpus.open(tmp_path / "corpus").checked_row(0)


def test_mistakes_are_told_in_a_sentence(digits: Corpus, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose from webdataset, parquet, folder"):
        export(digits, str(tmp_path / "a"), "tfrecord")
    with pytest.raises(ValueError, match="it has test, train, val"):
        export(digits, str(tmp_path / "a"), "folder", split="dev")
    with pytest.raises(FileExistsError, match=r"not empty \(it holds mine.txt\)"):
        export(digits, str(tmp_path / "full"), "folder")
    with pytest.raises(FileExistsError, match="is a file"):
        export(digits, str(tmp_path / "full" / "mine.txt"), "folder")
    with pytest.raises(ValueError, match="outside of it"):
        export(digits, f"{digits.location}/export", "folder")
    with pytest.raises(ValueError, match="at least 1"):
        export(digits, str(tmp_path / "a"), "parquet", rows_per_file=0)
    assert not (tmp_path / "a").exists()
