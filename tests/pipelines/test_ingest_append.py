"""An append knows an input again by its key and its content: what has a known key and another content is refused, not lost."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from sightline.pipelines.corpus.forget import forget
from sightline.pipelines.corpus.gc import collect
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.ingest import earlier
from sightline.pipelines.ingest.prepare import Prepared, prepare_append, prepare_retry
from sightline.pipelines.ingest.report import IngestOptions, IngestReport
from sightline.pipelines.ingest.resize import Resize
from tests.corpora import finish_alone, ingest_alone
from tests.pipelines.sources import gzipped, parquet, put, tar


def bmp(shade: int) -> bytes:
    """Images of one size in bytes, whatever they show."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "BMP")
    return buffer.getvalue()


def table(folder: Path, images: Mapping[str, bytes], caption: str = "a photo", **masks: bytes) -> Path:
    lines = [f"{name},{caption},{name + '.png' if name in masks else ''}\n" for name in images]
    files: dict[str, bytes | str] = {f"images/{name}": data for name, data in images.items()}
    files |= {f"masks/{name}.png": data for name, data in masks.items()}
    put(folder, files | {"captions.csv": "image,caption,mask\n" + "".join(lines)})
    return folder


def appended(source: str | Path, corpus: Path, options: IngestOptions | None = None) -> IngestReport:
    prepared = prepare_append(source, corpus, options or IngestOptions())
    return finish_alone(prepared) if isinstance(prepared, Prepared) else prepared


@pytest.mark.parametrize("packed", ["tar", "tar.gz"])
def test_tars_of_another_folder_with_names_that_are_known_are_refused(tmp_path: Path, packed: str) -> None:
    def tars(folder: str, shade: int) -> Path:
        data = tar([(f"{i}.bmp", bmp(shade + i)) for i in range(3)])
        return put(tmp_path / folder, {f"0.{packed}": gzipped(data) if packed == "tar.gz" else data})  # type: ignore[no-any-return]

    corpus = ingest_alone(tars("one", 0), tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"has the input '0.tar.*/0', and that of .*two has another content; give it another key"):
        appended(tars("two", 100), corpus)
    (tmp_path / "two" / f"0.{packed}").rename(tmp_path / "two" / f"1.{packed}")  # the remedy
    assert appended(tmp_path / "two", corpus).kept == 6


def test_parquet_files_of_another_folder_with_names_that_are_known_are_refused(tmp_path: Path) -> None:
    for folder, shade in (("one", 0), ("two", 100)):
        put(tmp_path / folder, {"train-00000-of-00001.parquet": parquet([{"image": bmp(shade)}, {"image": bmp(shade + 1)}])})
    corpus = ingest_alone(tmp_path / "one", tmp_path / "corpus")
    with pytest.raises(ValueError, match=r"'train-00000-of-00001.parquet#0', and that of .*two has another content"):
        appended(tmp_path / "two", corpus)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    assert appended(tmp_path / "copy", corpus).generation == 1


def test_a_copy_elsewhere_is_known_by_its_images_and_only_what_is_new_joins(tmp_path: Path) -> None:
    options = IngestOptions(resize=Resize.parse("shortest=4", "jpeg:90"))
    corpus = ingest_alone(table(tmp_path / "one", {"a": bmp(1), "b": bmp(2), "c": b"no image"}), tmp_path / "corpus", options)
    copy = table(tmp_path / "two", {"a": bmp(1), "b": bmp(2), "c": b"no image", "d": bmp(4)})
    report = appended(copy, corpus)
    assert (report.seen, report.kept, report.errors) == (4, 3, 1)


@pytest.mark.parametrize("changed", ["image", "caption", "mask", "mask alone", "size"])
def test_a_known_key_with_another_content_is_refused(tmp_path: Path, changed: str) -> None:
    def mask(shade: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), shade).save(buffer, "PNG")
        return buffer.getvalue()

    assert len(mask(1)) == len(mask(2))
    corpus = ingest_alone(table(tmp_path / "one", {"a": bmp(1), "b": bmp(2)}, a=mask(1)), tmp_path / "corpus")
    other = table(
        tmp_path / "two",
        {"a": {"image": bmp(9), "size": bmp(1) + b"more"}.get(changed, bmp(1)), "e": bmp(7)},
        "another photo" if changed == "caption" else "a photo",
        **({} if changed == "mask" else {"a": mask(2 if changed == "mask alone" else 1)}),
    )
    with pytest.raises(ValueError, match=r"has the input 'a', and that of .*two has another content"):
        appended(other, corpus)
    assert Corpus.open(corpus).rows == 2


def test_in_its_own_place_nothing_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "tars", {f"{i}.tar": tar([("0.bmp", bmp(i))]) for i in range(3)})
    table(tmp_path / "table", {"a": bmp(1)})
    corpora = {
        f"{tmp_path}/tars/{{0..2}}.tar": ingest_alone(tmp_path / "tars", tmp_path / "of tars"),
        f"{tmp_path}/table/captions.csv": ingest_alone(tmp_path / "table", tmp_path / "of a table"),
    }

    def unread(*arguments: object, **options: object) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(earlier, "transform", unread)
    for source, corpus in corpora.items():
        assert appended(source, corpus).generation == 1


def test_what_was_rejected_and_is_another_now_is_sent_to_retry(tmp_path: Path) -> None:
    source = table(tmp_path / "one", {"a": bmp(1), "b": b"no image"})
    corpus = ingest_alone(source, tmp_path / "corpus")
    table(source, {"a": bmp(1), "b": bmp(2), "c": bmp(3)})
    with pytest.raises(ValueError, match=r"'b', rejected as decode/not_an_image.*if it was mended, `sightline corpus retry .*one`"):
        appended(source, corpus)
    retried = prepare_retry(corpus, str(source), [])
    assert isinstance(retried, Prepared)
    assert finish_alone(retried).kept == 2
    assert appended(source, corpus).kept == 3


def test_what_was_forgotten_stays_out_wherever_it_lies(tmp_path: Path) -> None:
    corpus = ingest_alone(table(tmp_path / "one", {"a": bmp(1), "b": bmp(2)}), tmp_path / "corpus")
    (gone,) = (row for row in map(Corpus.open(corpus).row, range(2)) if row.key == "a")
    forget(open_store(corpus), [gone.uid.hex()])
    table(tmp_path / "two", {"a": bmp(1), "c": bmp(3)})
    assert appended(tmp_path / "two", corpus).kept == 2
    collect(open_store(corpus), purge=True)  # the plans say nothing of it any more
    for folder in ("one", "two"):
        assert appended(tmp_path / folder, corpus).kept == 2


def test_classes_are_compared_by_name_and_files_without_content_by_their_verdict(tmp_path: Path) -> None:
    put(tmp_path / "one", {"cat/1.bmp": bmp(1), "cat/Thumbs.db": b"x", "note.txt": b"x"})
    put(tmp_path / "two", {"cat/1.bmp": bmp(1), "cat/Thumbs.db": b"xyz", "dog/2.bmp": bmp(2), "note.txt": b"xyz"})
    corpus = ingest_alone(tmp_path / "one", tmp_path / "corpus")
    assert appended(tmp_path / "two", corpus).kept == 2


def test_a_list_of_urls_knows_an_image_by_its_address(tmp_path: Path) -> None:
    """Nothing is downloaded: without a client each address ends as an error row, and is an input all the same."""
    for name, address in (("one", "a"), ("same", "a"), ("other", "b")):
        put(tmp_path, {f"{name}.csv": f"id,url,caption\n1,https://example.org/{address},x\n"})
    corpus = ingest_alone(tmp_path / "one.csv", tmp_path / "corpus")
    assert appended(tmp_path / "same.csv", corpus).generation == 1
    with pytest.raises(ValueError, match=r"has the input '1', .* and that of .*other.csv has another content"):
        appended(tmp_path / "other.csv", corpus)
