"""What joins a corpus later: appended inputs, and rejected ones that are taken up again."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from PIL import Image

from sightline.cli.ingest import KINDS as NAMED
from sightline.cli.ingest import MEGAPIXELS, rejections, show
from sightline.pipelines.corpus.forget import forget
from sightline.pipelines.corpus.manifest import generation_name, read_manifest
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.ingest.build import MAX_ATTEMPTS, build_shard
from sightline.pipelines.ingest.prepare import Prepared, prepare, prepare_append, prepare_retry
from sightline.pipelines.ingest.report import IngestOptions, IngestReport
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.detect import KINDS
from tests.corpora import finish_alone, ingest_alone


def photos(folder: Path, names: list[str], damaged: tuple[str, ...] = ()) -> Path:
    """A folder with a captions table; some of its files are no images."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows([name, f"a photo called {name}"] for name in names)
    for name in names:
        pixels = np.random.default_rng(list(name.encode())).integers(0, 256, (8, 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (folder / "images" / name).write_bytes(b"no image" if name in damaged else buffer.getvalue())
    return folder


def keys(corpus: Path) -> list[str]:
    found: list[str] = Corpus.open(corpus).sidecar(["key"]).column("key").to_pylist()
    return found


def joined(prepared: Prepared | IngestReport) -> IngestReport:
    assert isinstance(prepared, Prepared)
    return finish_alone(prepared)


def test_append_takes_only_keys_that_were_never_seen(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b", "c"], damaged=("b",)), tmp_path / "corpus")
    before = Corpus.open(corpus)
    more = photos(tmp_path / "more", ["b", "c", "d", "e"], damaged=("b",))
    report = joined(prepare_append(more, corpus, IngestOptions()))
    assert (report.seen, report.kept, report.errors, report.generation) == (5, 4, 1, 2)
    after = Corpus.open(corpus)
    assert keys(corpus)[: before.rows] == [before.row(i).key for i in range(before.rows)]
    assert sorted(keys(corpus)) == ["a", "c", "d", "e"]
    assert after.manifest.plan_ids[0] == before.manifest.plan_ids[0]


def test_appending_nothing_new_changes_nothing(tmp_path: Path) -> None:
    source = photos(tmp_path / "source", ["a", "b"])
    corpus = ingest_alone(source, tmp_path / "corpus")
    root = Corpus.open(corpus).root
    report = prepare_append(source, corpus, IngestOptions())
    assert isinstance(report, IngestReport)
    assert (report.root, report.generation) == (root, 1)


def test_the_generation_before_an_append_can_still_be_opened_by_its_root(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b"]), tmp_path / "corpus")
    first = Corpus.open(corpus)
    joined(prepare_append(photos(tmp_path / "more", ["c"]), corpus, IngestOptions()))
    assert Corpus.open(corpus).rows == 3
    again = Corpus.open(corpus, first.root)
    assert (again.rows, again.root) == (2, first.root)
    with pytest.raises(ValueError, match="never had"):
        Corpus.open(corpus, "0" * 64)


def test_an_appended_corpus_has_the_fingerprint_of_one_made_at_once(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b"]), tmp_path / "corpus")
    joined(prepare_append(photos(tmp_path / "more", ["c", "d"]), corpus, IngestOptions()))
    whole = ingest_alone(photos(tmp_path / "both", ["a", "b", "c", "d"]), tmp_path / "whole")
    assert Corpus.open(corpus).manifest.fingerprint == Corpus.open(whole).manifest.fingerprint


def test_of_two_appends_at_once_one_is_told_to_plan_again_and_nothing_is_doubled(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a"]), tmp_path / "corpus")
    first = prepare_append(photos(tmp_path / "one", ["b", "c"]), corpus, IngestOptions())
    second = prepare_append(photos(tmp_path / "two", ["b", "c", "d"]), corpus, IngestOptions())
    assert joined(first).generation == 2
    with pytest.raises(FileExistsError, match="got generation 2 meanwhile; the same command again"):
        joined(second)
    report = joined(prepare_append(tmp_path / "two", corpus, IngestOptions()))
    assert (report.seen, report.kept, report.generation) == (4, 4, 3)
    assert sorted(keys(corpus)) == ["a", "b", "c", "d"]
    assert open_store(corpus).names("manifests") == [generation_name(n) for n in (1, 2, 3)]


def test_retry_goes_to_the_source_that_an_input_came_from(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b"], damaged=("b",)), tmp_path / "corpus")
    joined(prepare_append(photos(tmp_path / "more", ["c", "d"], damaged=("d",)), corpus, IngestOptions()))
    photos(tmp_path / "source", ["a", "b"])
    photos(tmp_path / "more", ["b", "c", "d"])  # another b: not the one that was rejected
    with pytest.raises(ValueError, match="choose one by --source"):
        prepare_retry(corpus, None, [])
    joined(prepare_retry(corpus, str(tmp_path / "source"), []))
    report = joined(prepare_retry(corpus, None, []))
    assert (report.seen, report.kept, report.errors) == (4, 4, 0)


def test_a_finished_shard_is_not_begun_again(tmp_path: Path) -> None:
    prepared = prepare(photos(tmp_path / "source", ["a"]), tmp_path / "corpus", IngestOptions())
    first = build_shard(prepared.store, prepared.plan, prepared.source, 0)
    for _ in range(2 * MAX_ATTEMPTS):
        assert build_shard(prepared.store, prepared.plan, prepared.source, 0) == first


def test_append_keeps_the_settings_that_the_corpus_began_with(tmp_path: Path) -> None:
    small = IngestOptions(resize=Resize.parse("shortest=4"))
    corpus = ingest_alone(photos(tmp_path / "source", ["a"]), tmp_path / "corpus", small)
    joined(prepare_append(photos(tmp_path / "more", ["b"]), corpus, IngestOptions()))
    opened = Corpus.open(corpus)
    assert [opened.row(i).width for i in range(2)] == [4, 4]
    with pytest.raises(ValueError, match="made with other options"):
        prepare_append(tmp_path / "more", corpus, IngestOptions(resize=Resize.parse("shortest=6")))


def test_appending_to_nothing_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no corpus"):
        prepare_append(photos(tmp_path / "source", ["a"]), tmp_path / "corpus", IngestOptions())


def test_a_corpus_of_another_source_is_left_alone_by_a_plain_ingest(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a"]), tmp_path / "corpus")
    with pytest.raises(FileExistsError, match="--append"):
        prepare(photos(tmp_path / "more", ["b"]), corpus, IngestOptions())


def test_classes_that_contradict_the_corpus_do_not_join(tmp_path: Path) -> None:
    for name, labels in (("source", ("cat", "dog")), ("more", ("ant", "bee"))):
        for label in labels:
            folder = tmp_path / name / label
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / f"{label}.png")
    corpus = ingest_alone(tmp_path / "source", tmp_path / "corpus")
    prepared = prepare_append(tmp_path / "more", corpus, IngestOptions())
    with pytest.raises(ValueError, match=r"class 0 is 'cat' in the corpus and 'ant'"):
        joined(prepared)
    assert read_manifest(open_store(corpus)).generation == 1


def test_retry_takes_up_what_was_mended_and_counts_each_input_once(tmp_path: Path) -> None:
    source = photos(tmp_path / "source", ["a", "b", "c", "d"], damaged=("b", "c"))
    corpus = ingest_alone(source, tmp_path / "corpus")
    photos(source, ["a", "b", "c", "d"], damaged=("c",))
    report = joined(prepare_retry(corpus, None, ["decode/not_an_image"]))
    assert (report.seen, report.kept, report.errors, report.generation) == (4, 3, 1, 2)
    assert sorted(keys(corpus)) == ["a", "b", "d"]
    photos(source, ["a", "b", "c", "d"])
    report = joined(prepare_retry(corpus, None, []))
    assert (report.seen, report.kept, report.errors, report.generation) == (4, 4, 0, 3)
    nothing = prepare_retry(corpus, None, [])
    assert isinstance(nothing, IngestReport)
    assert nothing.generation == 3


def test_retry_of_what_is_still_damaged_can_be_repeated(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b"], damaged=("b",)), tmp_path / "corpus")
    for generation in (2, 3):
        report = joined(prepare_retry(corpus, None, []))
        assert (report.seen, report.kept, report.errors, report.generation) == (2, 1, 1, generation)


def test_retry_names_the_codes_that_there_are(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b"], damaged=("b",)), tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"'timeout' is no code; write STAGE/CODE.*; there are decode/not_an_image"):
        prepare_retry(corpus, None, ["timeout"])


def test_retry_of_a_code_that_nothing_has_changes_nothing(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b"], damaged=("b",)), tmp_path / "corpus")
    report = prepare_retry(corpus, None, ["fetch/timeout"])
    assert isinstance(report, IngestReport)
    assert (report.generation, report.errors) == (1, 1)


def test_what_was_forgotten_does_not_come_back_by_an_append(tmp_path: Path) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a", "b"]), tmp_path / "corpus")
    opened = Corpus.open(corpus)
    gone = next(row for row in map(opened.row, range(2)) if row.key == "a")
    forget(open_store(corpus), [gone.uid.hex()])
    more = photos(tmp_path / "more", ["c"])
    (more / "images" / "renamed").write_bytes((tmp_path / "source/images/a").read_bytes())
    with (more / "captions.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["renamed", "a photo called a"])
    report = joined(prepare_append(more, corpus, IngestOptions()))
    assert (report.seen, report.kept, report.filtered, report.forgotten) == (4, 2, 1, 1)
    assert report.rejected_by_code == {"filter/forgotten": 1}
    assert sorted(keys(corpus)) == ["b", "c"]


def test_the_help_names_every_kind_of_source() -> None:
    assert ", ".join(KINDS) == NAMED
    assert IngestOptions().max_pixels == MEGAPIXELS * 1e6


def test_an_ingest_that_keeps_nothing_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = ingest_alone(photos(tmp_path / "source", ["a"], damaged=("a",)), tmp_path / "corpus")
    with pytest.raises(typer.Exit) as ended:
        show(IngestReport.of(read_manifest(open_store(corpus))), str(corpus), json=True)
    printed = capsys.readouterr()
    assert ended.value.exit_code == 1
    assert "nothing was kept of 1 inputs" in printed.err
    assert '"errors": 1' in printed.out


def test_a_tar_whose_samples_have_the_numbers_of_an_earlier_one_adds_its_own_rows_and_no_others(tmp_path: Path) -> None:
    def tar(name: str, pictures: list[str]) -> None:
        with tarfile.open(tmp_path / "tars" / name, "w") as archive:
            for number, picture in enumerate(pictures):
                archive.add(tmp_path / "source/images" / picture, f"{number}.png")

    photos(tmp_path / "source", ["a", "b", "c"])
    (tmp_path / "tars").mkdir()
    tar("one.tar", ["a", "b"])
    corpus = ingest_alone(tmp_path / "tars", tmp_path / "corpus")
    before = keys(corpus)
    tar("two.tar", ["c"])
    report = joined(prepare_append(tmp_path / "tars", corpus, IngestOptions()))
    assert (report.seen, report.kept) == (3, 3)
    assert sorted(before) == ["one.tar/0", "one.tar/1"]
    assert keys(corpus) == [*before, "two.tar/0"]
    assert isinstance(prepare_append(tmp_path / "tars", corpus, IngestOptions()), IngestReport)


def test_files_that_go_by_other_keys_than_before_are_refused_rather_than_taken_twice(tmp_path: Path) -> None:
    source = photos(tmp_path / "source", ["a", "b"])
    corpus = ingest_alone(source, tmp_path / "corpus")
    (source / "captions.csv").write_text("image,caption,key\na,a photo,1\nb,a photo,2\n")
    with pytest.raises(ValueError, match=r"images/a is in .* under the key 'a', and the source now calls it '1'"):
        prepare_append(source, corpus, IngestOptions())
    assert Corpus.open(corpus).rows == 2


def test_rows_whose_keys_would_come_from_another_column_are_refused_rather_than_taken_twice(tmp_path: Path) -> None:
    def table(name: str, numbers: list[int]) -> None:
        picture = (photos(tmp_path / "photos", ["a"]) / "images/a").read_bytes()
        images = [b"no image" if number == 1 else picture for number in numbers]
        path = tmp_path / "source" / name
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": images, "id": numbers}), path)

    table("0.parquet", [0, 1])
    corpus = ingest_alone(tmp_path / "source", tmp_path / "corpus")
    table("1.parquet", [2])
    assert joined(prepare_append(tmp_path / "source", corpus, IngestOptions())).kept == 2
    table("2.parquet", [0])  # ids are no longer unique
    for again in (
        lambda: prepare_append(tmp_path / "source", corpus, IngestOptions()),
        lambda: prepare_retry(corpus, str(tmp_path / "source"), []),
    ):
        with pytest.raises(ValueError, match=r"has the keys of such rows from id, and this source has them from FILE#ROW"):
            again()
    assert Corpus.open(corpus).rows == 2


def test_what_was_rejected_is_shown_with_an_example(tmp_path: Path) -> None:
    """On one ingest of four inputs that fail in two ways."""
    source = photos(tmp_path / "source", ["a", "b", "c", "d"], damaged=("b", "c"))
    (source / "images" / "d").unlink()
    prepared = prepare(source, tmp_path / "corpus", IngestOptions())
    report = finish_alone(prepared)
    _, *lines = rejections(report, str(tmp_path / "corpus"))
    assert [line.split()[:2] for line in lines] == [["2", "decode/not_an_image"], ["1", "list/missing"]]
    assert "no image of a known format" in lines[0] and lines[1].split()[2] == "d:"
