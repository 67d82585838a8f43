"""Ingest from a source folder to an open corpus: the transform alone, then whole runs on the session's Ray."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import Rejected, Row
from sightline.pipelines.ingest import build, job
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions, Progress
from sightline.pipelines.ingest.sources.item import Item, filtered
from sightline.pipelines.ingest.transform import transform


def picture(format: str = "JPEG", size: tuple[int, int] = (8, 6), mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format, **options)
    return buffer.getvalue()


def outcome(files: dict[str, bytes], **fields: Any) -> Row | Rejected:
    """What becomes of an item whose image is `x` among some files."""

    def read(reference: str) -> bytes:
        if reference not in files:
            raise FileNotFoundError(2, "No such file or directory", reference)
        return files[reference]

    return transform(Item(**{"key": "k", "image": "x", **fields}), 5, read)


def code(result: Row | Rejected) -> tuple[str, str]:
    assert isinstance(result, Rejected)
    assert (result.plan_row, result.key, result.source) == (5, "k", "x")
    assert result.message
    return result.stage, result.code


# --- the transform


def test_an_item_becomes_a_row_with_its_bytes_unchanged() -> None:
    image, mask = picture(), picture("PNG", mode="L")
    row = outcome({"x": image, "m": mask}, mask="m", captions=("a", "b"), labels=(3,), extra='{"split":"val"}')
    assert isinstance(row, Row)
    assert (row.image, row.mask) == (image, mask)
    assert (row.format, row.width, row.height) == ("jpeg", 8, 6)
    assert (row.key, row.source, row.captions, row.labels) == ("k", "x", ("a", "b"), (3,))
    assert row.extra == '{"split":"val"}'


def test_sizes_are_those_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    row = outcome({"x": picture(exif=exif), "m": picture("PNG", (6, 8), "L")}, mask="m")
    assert isinstance(row, Row)
    assert (row.width, row.height) == (6, 8)


@pytest.mark.parametrize(
    ("files", "fields", "expected"),
    [
        ({}, {}, ("read", "missing")),
        ({"x": b""}, {}, ("decode", "empty")),
        ({"x": b"<html>"}, {}, ("decode", "not_an_image")),
        ({"x": picture()[:-50]}, {}, ("decode", "truncated")),
        ({"x": picture("PNG", (9_000, 9_000), "1")}, {}, ("decode", "too_many_pixels")),
        ({"x": picture()}, {"nbytes": 2**40}, ("read", "too_many_bytes")),
        ({"x": picture()}, {"mask": "m"}, ("read", "missing")),
        ({"x": picture(), "m": b"?"}, {"mask": "m"}, ("mask", "mask_not_an_image")),
        ({"x": picture(), "m": picture()}, {"mask": "m"}, ("mask", "mask_not_a_label_map")),
        ({"x": picture(), "m": picture("PNG", (6, 8), "L")}, {"mask": "m"}, ("mask", "mask_size")),
        ({"x": picture()}, {"verdict": filtered("sidecar_file", "why")}, ("filter", "sidecar_file")),
    ],
)
def test_what_becomes_no_row_has_a_stage_and_a_code(
    files: dict[str, bytes], fields: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert code(outcome(files, **fields)) == expected


def test_equal_pairs_are_both_kept_and_share_their_uid(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (source / name).write_bytes(picture())
    (source / "captions.csv").write_text("image,caption\na.jpg,x\nb.jpg,x\nc.jpg,y\n")
    prepared = prepare(source, tmp_path / "corpus", IngestOptions())
    build.build_shard(prepared.store, prepared.plan, prepared.source, 0)
    assert job.run(prepared).kept == 3
    corpus = Corpus.open(tmp_path / "corpus")
    uids = {row.key: row.uid for row in map(corpus.row, range(3))}
    assert uids["a.jpg"] == uids["b.jpg"] != uids["c.jpg"]


# --- whole runs


def flickr(folder: Path, shared_data: Path, images: int = 60) -> Path:
    """A captions table over the first images of Flickr8k."""
    (folder / "images").mkdir(parents=True)
    with (shared_data / "flickr8k" / "captions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[: images * 5]
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    for name in {row["image"] for row in rows}:
        shutil.copy(shared_data / "flickr8k" / "images" / name, folder / "images")
    return folder


def captions_of(folder: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, tuple[str, ...]] = {}
    with (folder / "captions.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            captions[row["image"]] = (*captions.get(row["image"], ()), row["caption"])
    return captions


def test_a_captions_table_becomes_a_corpus_with_nothing_lost(ray_local: None, tmp_path: Path, shared_data: Path) -> None:
    source = flickr(tmp_path / "source", shared_data)
    seen: list[Progress] = []
    report = job.ingest(source, tmp_path / "corpus", IngestOptions(shard_rows=16), seen.append)
    assert (report.seen, report.kept, report.filtered, report.errors) == (60, 60, 0, 0)
    assert report.images_per_s > 0
    assert [progress.shards for progress in seen] == [0, 1, 2, 3, 4]
    assert (seen[-1].rows, seen[-1].all_rows, seen[-1].all_shards) == (60, 60, 4)
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.root == report.root
    rows = [corpus.row(i) for i in range(corpus.rows)]
    assert {row.key: row.captions for row in rows} == captions_of(source)
    assert all(bytes(row.image) == (source / "images" / row.key).read_bytes() for row in rows)
    assert [row.key for row in rows] != sorted(row.key for row in rows)


def test_captions_in_any_script_survive_byte_for_byte(ray_local: None, tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "vi_captions"
    job.ingest(source, tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    found = dict(zip(*(corpus.sidecar([name]).column(name).to_pylist() for name in ("key", "captions")), strict=True))
    assert {key: tuple(captions) for key, captions in found.items()} == captions_of(source)


def test_class_folders_become_a_corpus_with_labels_and_splits(ray_local: None, tmp_path: Path, shared_data: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        shared_data / "imagenette",
        source,
        ignore=lambda folder, names: sorted(name for name in names if name.endswith(".jpg"))[3:],
    )
    report = job.ingest(source, tmp_path / "corpus", IngestOptions(shard_rows=20))
    assert (report.seen, report.kept) == (60, 60)
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.classes[:3] == ("tench", "English springer", "cassette player")
    assert corpus.splits == {"train": 30, "val": 30}
    for i in corpus.select("val"):
        row = corpus.row(int(i))
        split, folder, _ = row.key.split("/")
        name = corpus.classes[row.labels[0]]
        assert (split, folder) == ("val", name.replace(" ", "_"))
        assert row.captions == (f"a photo of a {name}",)
    first = Counter(row[0] for row in corpus.sidecar(["labels"]).slice(0, 20).column("labels").to_pylist())
    assert len(first) >= 5  # a class per folder does not become a class per shard


def sample(folder: Path, count: int = 24) -> Path:
    """A folder like `sightline sample` writes: captions.jsonl, masks, classes.csv, splits."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = []
    for i in range(count):
        pixels = np.full((12, 10, 3), i * 9, np.uint8)
        labels = np.zeros((12, 10), np.uint8)
        labels[2:5, 2:5] = i % 3
        Image.fromarray(pixels).save(folder / "images" / f"{i:03d}.jpg")
        Image.fromarray(labels).save(folder / "masks" / f"{i:03d}.png")
        line = {
            "image": f"images/{i:03d}.jpg",
            "captions": [f"scene {i}", "a scene"],
            "labels": [["red one"], ["blue two"], []][i % 3],
            "mask": f"masks/{i:03d}.png",
            "split": "val" if i % 4 == 0 else "train",
        }
        lines.append(json.dumps(line))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "classes.csv").write_text("id,name\n0,background\n1,red one\n2,blue two\n", encoding="utf-8")
    return folder


def test_a_folder_with_masks_and_classes_becomes_a_corpus(ray_local: None, tmp_path: Path) -> None:
    source = sample(tmp_path / "source")
    report = job.ingest(source, tmp_path / "corpus")
    assert (report.kept, report.errors) == (24, 0)
    corpus = Corpus.open(tmp_path / "corpus")
    assert corpus.classes == ("background", "red one", "blue two")
    assert corpus.splits == {"train": 18, "val": 6}
    for i in range(corpus.rows):
        row = corpus.row(i)
        number = int(row.key[-7:-4])
        assert bytes(row.mask or b"") == (source / "masks" / f"{number:03d}.png").read_bytes()
        assert row.labels == ((1,), (2,), ())[number % 3]


def test_what_cannot_be_read_costs_one_error_row_each(ray_local: None, tmp_path: Path, shared_data: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(shared_data / "hostile", source / "hostile")
    shutil.copytree(shared_data / "odd_valid", source / "odd")
    (source / "odd" / "Thumbs.db").write_bytes(b"x")
    report = job.ingest(source, tmp_path / "corpus", IngestOptions(shard_rows=64))
    files = [path for path in source.rglob("*") if path.is_file()]
    assert report.seen == len(files) == report.kept + report.filtered + report.errors
    errors = [row for path in (tmp_path / "corpus/errors").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert Counter(f"{row['stage']}/{row['code']}" for row in errors) == report.rejected_by_code
    no_pictures = {row["key"] for row in errors if row["stage"] == "filter"}
    assert no_pictures == {"odd/Thumbs.db", "hostile/index.csv", "odd/index.csv"} and report.filtered == len(no_pictures)
    corpus = Corpus.open(tmp_path / "corpus")
    kept = set(corpus.sidecar(["key"]).column("key").to_pylist())
    assert kept | {row["key"] for row in errors} == {path.relative_to(source).as_posix() for path in files}
    odd = {key for key in kept if key.startswith("odd/")}
    assert len(odd) == 76


def test_the_root_depends_on_neither_place_nor_packing_nor_processes(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    source = flickr(tmp_path / "source", shared_data, 40)
    options = IngestOptions(shard_rows=8)
    first = job.ingest(source, tmp_path / "first", options)
    elsewhere = shutil.copytree(source, tmp_path / "quite" / "elsewhere")
    monkeypatch.setattr(job, "MAX_TASKS", 1)  # all shards in one task, hence in one process
    second = job.ingest(elsewhere, tmp_path / "second", options)
    prepared = prepare(source, tmp_path / "third", options)
    for index in reversed(range(prepared.plan.shards)):  # no Ray at all, in another order
        build.build_shard(prepared.store, prepared.plan, prepared.source, index)
    third = job.run(prepared)
    assert first.root == second.root == third.root
    names = [
        sorted(path.relative_to(tmp_path / name).as_posix() for path in (tmp_path / name / "data").rglob("*.arrow"))
        for name in ("first", "second", "third")
    ]
    assert names[0] == names[1] == names[2]


def test_a_finished_ingest_reports_again_without_work(ray_local: None, tmp_path: Path) -> None:
    source = sample(tmp_path / "source")
    report = job.ingest(source, tmp_path / "corpus")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}
    assert prepare(source, tmp_path / "corpus", IngestOptions()).report == report
    assert job.ingest(source, tmp_path / "corpus") == report
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")} == before


def test_finished_shards_are_not_redone(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sample(tmp_path / "source")
    options = IngestOptions(shard_rows=6)
    whole = job.ingest(source, tmp_path / "whole", options)
    prepared = prepare(source, tmp_path / "corpus", options)
    records = [build.build_shard(prepared.store, prepared.plan, prepared.source, index) for index in (0, 3)]
    before = [(tmp_path / "corpus" / record.file).stat().st_mtime_ns for record in records]
    seen: list[Progress] = []
    report = job.ingest(source, tmp_path / "corpus", options, seen.append)
    assert report.root == whole.root
    assert [progress.shards for progress in seen] == [2, 3, 4]
    assert seen[-1].fresh_rows == 12
    assert [(tmp_path / "corpus" / record.file).stat().st_mtime_ns for record in records] == before


# --- destinations


def test_another_source_or_other_options_need_another_folder(tmp_path: Path) -> None:
    source = sample(tmp_path / "source")
    prepare(source, tmp_path / "begun", IngestOptions())
    with pytest.raises(FileExistsError, match="unfinished ingest of another source or other options; ingest into a"):
        prepare(source, tmp_path / "begun", IngestOptions(seed=1))
    (source / "images" / "000.jpg").write_bytes(picture() + b"\0")
    with pytest.raises(FileExistsError, match="unfinished"):
        prepare(source, tmp_path / "begun", IngestOptions())


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    source = sample(tmp_path / "source")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="files that are no corpus"):
        prepare(source, tmp_path / "home", IngestOptions())
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]


def test_a_destination_within_the_source_is_refused(tmp_path: Path) -> None:
    source = sample(tmp_path / "source")
    for dest in (source, source / "corpus"):
        with pytest.raises(ValueError, match="lies in the source"):
            prepare(source, dest, IngestOptions())


def test_a_plan_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    source = sample(tmp_path / "source")
    prepared = prepare(source, tmp_path / "corpus", IngestOptions())
    (tmp_path / "corpus" / "plans" / prepared.plan.plan_id / "config.json").unlink()
    assert prepare(source, tmp_path / "corpus", IngestOptions()).plan == prepared.plan


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl", "captions.parquet"])
def test_a_table_without_rows_is_refused(tmp_path: Path, name: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    if name.endswith("parquet"):
        pq.write_table(pa.table({"image": pa.array([], pa.string()), "caption": pa.array([], pa.string())}), source / name)
    else:
        (source / name).write_text("image,caption\n" if name.endswith("csv") else "")
    with pytest.raises(ValueError, match=r"has no rows, only its columns|has none"):
        prepare(source, tmp_path / "corpus", IngestOptions())
    assert not (tmp_path / "corpus").exists()


# --- the command


def test_the_command_prints_its_result_as_json(cli: Callable[..., Any], tmp_path: Path) -> None:
    source = sample(tmp_path / "source")
    (source / "images" / "000.jpg").unlink()
    done: subprocess.CompletedProcess[str] = cli("ingest", source, "corpus", "--cpus", 1, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {name: result[name] for name in ("seen", "kept", "filtered", "errors", "corpus", "rejected")} == {
        "seen": 24,
        "kept": 23,
        "filtered": 0,
        "errors": 1,
        "corpus": "corpus",
        "rejected": {"list/missing": 1},
    }
    assert result["root"] == Corpus.open(tmp_path / "corpus").root
    assert result["images_per_s"] > 0
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "corpus"], "nowhere"),
        (["empty", "corpus"], "an empty folder"),
        (["wrong", "corpus"], "captions.csv has file, text"),
        (["source", "corpus", "--kind", "tar"], "choose from corpus, webdataset"),
        (["source", "source/corpus"], "lies in the source"),
        (["source", "nowhere://bucket/corpus"], "no file system is known"),
    ],
)
def test_a_mistake_costs_one_line_and_status_2(cli: Callable[..., Any], tmp_path: Path, arguments: list[str], words: str) -> None:
    sample(tmp_path / "source", 3)
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "captions.csv").write_text("file,text\na.jpg,x\n")
    done: subprocess.CompletedProcess[str] = cli("ingest", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "corpus").exists()
