"""What the sources list, what they refuse and in which words; no Ray."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightline.pipelines.ingest.sources.captions_table import CaptionsTable
from sightline.pipelines.ingest.sources.class_folder import ClassFolder
from sightline.pipelines.ingest.sources.detect import open_source
from sightline.pipelines.ingest.sources.item import Item, sound
from tests.pipelines.sources import items, tree


def table(tmp_path: Path, captions: str, name: str = "captions.csv", **files: str | bytes) -> dict[str, Item]:
    """The items of a captions table beside two images."""
    tree(tmp_path, {name: captions, "a.jpg": b"a", "images/b.jpg": b"bb", **files})
    return items(CaptionsTable.open(tmp_path))


# --- captions tables


def test_csv_rows_of_one_image_are_one_item_with_its_captions_in_order(tmp_path: Path) -> None:
    found = table(tmp_path, 'image,caption,split\na.jpg,"one, two",train\nb.jpg,three,val\na.jpg,four,train\n')
    assert found["a.jpg"].captions == ("one, two", "four")
    assert (found["a.jpg"].image, found["a.jpg"].nbytes) == ("a.jpg", 1)
    assert (found["b.jpg"].image, found["b.jpg"].nbytes) == ("images/b.jpg", 2)
    assert [json.loads(found[key].extra) for key in ("a.jpg", "b.jpg")] == [{"split": "train"}, {"split": "val"}]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_all_three_kinds_of_table_say_the_same(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "image": "a.jpg",
            "captions": ["Một cậu bé, đang đá", 'a "quote"'],
            "labels": ["cat", "dog"],
            "split": "train",
        },
        {"image": "b.jpg", "captions": ["  spaces and\nlines stay "], "labels": [], "split": "val"},
    ]
    tree(tmp_path, {"a.jpg": b"a", "images/b.jpg": b"bb"})
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "captions.parquet")
    elif suffix == "jsonl":
        (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:

        def cell(value: Any) -> str:
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
            return '"' + text.replace('"', '""') + '"'

        lines = [",".join(rows[0]), *(",".join(cell(value) for value in row.values()) for row in rows)]
        (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = CaptionsTable.open(tmp_path)
    assert source.classes() == [(0, "cat"), (1, "dog")]
    assert items(source) == {
        "a.jpg": Item("a.jpg", "a.jpg", 1, tuple(rows[0]["captions"]), (0, 1), extra='{"split":"train"}'),
        "b.jpg": Item("b.jpg", "images/b.jpg", 2, tuple(rows[1]["captions"]), (), extra='{"split":"val"}'),
    }


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    found = table(tmp_path, "\ufeffimage,caption\r\na.jpg,one\r\n\r\nb.jpg,two\r\n")
    assert [found[key].captions for key in ("a.jpg", "b.jpg")] == [("one",), ("two",)]


def test_a_caption_that_begins_with_a_bracket_is_a_caption(tmp_path: Path) -> None:
    assert table(tmp_path, "image,caption\na.jpg,[sic] a dog\n")["a.jpg"].captions == ("[sic] a dog",)


@pytest.mark.parametrize("cell", ["[1]", "[]", '["a"]'])
def test_a_caption_that_is_json_is_a_caption(tmp_path: Path, cell: str) -> None:
    quoted = cell.replace('"', '""')
    assert table(tmp_path, f'image,caption\na.jpg,"{quoted}"\n')["a.jpg"].captions == (cell,)
    listed = () if cell == "[]" else ("a",) if cell == '["a"]' else (cell,)
    assert table(tmp_path, f'image,captions\na.jpg,"{quoted}"\n')["a.jpg"].captions == listed
    (tmp_path / "captions.csv").unlink()
    lines = json.dumps({"image": "a.jpg", "captions": cell}) + "\n"
    assert table(tmp_path, lines, "captions.jsonl")["a.jpg"].captions == (cell,)


def test_a_tar_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(bytes(2**22)))
    monkeypatch.setattr("sightline.pipelines.ingest.sources.tars.MAX_SLACK", 0)
    with pytest.raises(ValueError, match="far beyond its size"):
        list(open_source(tmp_path).items())


def test_a_link_to_itself_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(FileNotFoundError, match="a link that leads nowhere"):
        open_source(tmp_path / "loop")


def test_labels_are_names_or_ids_of_the_classes_file(tmp_path: Path) -> None:
    classes = "id,name\n0,background\n7,cat\n9,dog\n"
    lines = "image,caption,label\na.jpg,x,dog\na.jpg,y,7\nb.jpg,z,\n"
    found = table(tmp_path, lines, **{"classes.csv": classes})
    assert found["a.jpg"].labels == (9, 7)
    assert found["b.jpg"].labels == ()
    assert CaptionsTable.open(tmp_path).classes() == [(0, "background"), (7, "cat"), (9, "dog")]


def test_an_unknown_label_names_the_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label 'bird'; the classes are cat, dog"):
        table(tmp_path, "image,caption,label\na.jpg,x,bird\n", **{"classes.csv": "id,name\n0,cat\n1,dog\n"})


def test_a_mask_is_looked_up_like_an_image(tmp_path: Path) -> None:
    lines = "image,caption,mask\na.jpg,x,a.png\nb.jpg,y,masks/gone.png\n"
    found = table(tmp_path, lines, **{"masks/a.png": b"123"})
    assert (found["a.jpg"].mask, found["a.jpg"].mask_nbytes) == ("masks/a.png", 3)
    verdict = found["b.jpg"].verdict
    assert verdict is not None
    assert (verdict.stage, verdict.code) == ("mask", "mask_missing")


def test_what_is_missing_or_outside_gets_a_verdict_and_not_an_exception(tmp_path: Path) -> None:
    tree(tmp_path / "source", {"folder.jpg/x": b""})
    tree(tmp_path, {"secret.jpg": b"secret"})
    lines = f"image,caption\ngone.jpg,x\nfolder.jpg,x\n../secret.jpg,x\n{tmp_path}/secret.jpg,x\n"
    found = table(tmp_path / "source", lines)
    codes = {key: item.verdict.code if item.verdict else None for key, item in found.items()}
    assert codes == {
        "gone.jpg": "missing",
        "folder.jpg": "missing",
        "../secret.jpg": "outside",
        f"{tmp_path}/secret.jpg": "outside",
    }


def test_a_pipe_is_not_a_file_to_wait_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    verdict = table(tmp_path, "image,caption\npipe.jpg,x\n")["pipe.jpg"].verdict
    assert verdict is not None
    assert verdict.code == "missing"


def test_columns_that_differ_within_an_image_are_listed_in_order(tmp_path: Path) -> None:
    found = table(tmp_path, "image,caption,author,licence\na.jpg,x,Ann,CC\na.jpg,y,Bob,CC\n")
    assert json.loads(found["a.jpg"].extra) == {"author": ["Ann", "Bob"], "licence": "CC"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.csv", "file,text\na.jpg,x\n", "`image` and `caption` or `captions`; captions.csv has file, text"),
        ("captions.csv", "", "captions.csv has none"),
        ("captions.csv", "image,caption\na.jpg,one, two\n", "line 2 has 3 fields, its header 2; quote values"),
        ("captions.csv", "image,caption\n,x\n", "line 2 names no image"),
        ("captions.csv", 'image,caption\na.jpg,"x\n', "not CSV"),
        ("captions.csv", b"image,caption\na.jpg,caf\xe9\n", "not UTF-8"),
        ("captions.csv", "image,caption,caption\na.jpg,x,y\n", "two columns of one name"),
        ("captions.csv", "image,caption,split\na.jpg,x,train\na.jpg,y,val\n", "several splits"),
        ("captions.csv", "image,caption,mask\na.jpg,x,1.png\na.jpg,y,2.png\n", "several masks"),
        ("captions.jsonl", '{"image": "a.jpg", "caption": 3}\n', "line 1: the column `caption` has 3, which"),
        ("captions.jsonl", '{"image": "a.jpg", "caption": "x"}\n{oops\n', "line 2 is no JSON"),
        ("captions.jsonl", '{"image": "a.jpg", "caption": "x"}\n[1]\n', "line 2 is no JSON object"),
        ("captions.jsonl", '{"image": "a.jpg", "caption": "x", "score": NaN}\n', "without a JSON form"),
        ("captions.parquet", b"PAR1 and nothing", "captions.parquet is a damaged Parquet file"),
        ("captions.jsonl", b"\x93\x00\xff", "captions.jsonl line 1 is no JSON"),
        ("captions.jsonl", "[" * 100_000, "captions.jsonl line 1 is no JSON"),
        ("captions.csv", "image,caption\n", "captions.csv has no rows, only its columns"),
        ("index.csv", "id,path\n1,a.jpg\n", "index.csv was taken for it because it is the only table there"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    tree(tmp_path, {name: content, "a.jpg": b"a", "images/b.jpg": b"b"})
    with pytest.raises(ValueError, match=message):
        list(open_source(tmp_path).items())


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("number,name\n0,cat\n", "no column 'id'; it needs id, name and has number, name"),
        ("id,name\nx,cat\n", "class id 'x'"),
        ("id,name\n0,cat\n0,dog\n", "one id to two classes"),
        ("id,name\n0,cat\n1,cat\n", "one name to two classes"),
        ("id,name\n0,cat\n1,\n", "without a name"),
    ],
)
def test_a_classes_file_that_makes_no_sense_is_refused(tmp_path: Path, classes: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path, "image,caption,label\na.jpg,x,cat\n", **{"classes.csv": classes})


def test_of_several_tables_the_one_called_captions_is_taken_or_else_a_choice_is_asked_for(tmp_path: Path) -> None:
    tree(tmp_path, {"captions.csv": "image,caption\n", "other.csv": "image,caption\n", "notes.csv": "a,b\n"})
    assert CaptionsTable.open(tmp_path).table.name == "captions.csv"
    (tmp_path / "captions.csv").rename(tmp_path / "more.csv")
    with pytest.raises(ValueError, match=r"several captions tables \(more.csv, other.csv\)"):
        CaptionsTable.open(tmp_path)
    assert open_source(tmp_path / "other.csv") == CaptionsTable(tmp_path, tmp_path / "other.csv")


def test_a_worker_gets_a_source_without_its_listing(tmp_path: Path) -> None:
    tree(tmp_path, {"captions.csv": "image,caption\n" + "a.jpg,some words\n" * 10_000})
    source = CaptionsTable.open(tmp_path)
    assert len(list(source.items())) == 1
    assert len(pickle.dumps(source)) < 1_000
    assert pickle.loads(pickle.dumps(source)) == source


def test_a_line_with_a_lone_surrogate_is_one_error_row(tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "caption": "\ud800"}, {"image": "b.jpg", "caption": "x", "note": "\ud800"},
        {"image": "\ud800.jpg", "caption": "x"}, {"image": "images/b.jpg", "caption": "x"},
    ]  # fmt: skip
    found = [sound(item) for item in table(tmp_path, "".join(f"{json.dumps(row)}\n" for row in lines), "captions.jsonl").values()]
    assert {item.key: item.verdict and item.verdict.code for item in found} == {
        "a.jpg": "text_not_utf8", "b.jpg": "text_not_utf8", "\\ud800.jpg": "text_not_utf8", "images/b.jpg": None,
    }  # fmt: skip


# --- class folders


def test_every_file_in_a_class_folder_is_an_item(tmp_path: Path) -> None:
    names = ["a.jpg", "b.webp", "c.unknown", "_d.jpg", ".e.jpg", "no_extension", "deeper/f.jpg"]
    tree(tmp_path, {f"red_fox/{name}": b"x" for name in names} | {"dog/g.jpg": b"x"})
    found = items(ClassFolder.open(tmp_path))
    assert set(found) == {f"red_fox/{name}" for name in names} | {"dog/g.jpg"}
    assert all(item.verdict is None for item in found.values())
    assert found["red_fox/a.jpg"] == Item("red_fox/a.jpg", "red_fox/a.jpg", 1, ("a photo of a red fox",), (1,), extra="{}")
    assert ClassFolder.open(tmp_path).classes() == [(0, "dog"), (1, "red fox")]


def test_splits_above_the_class_folders_go_into_extra(tmp_path: Path) -> None:
    tree(tmp_path, {"train/cat/1.jpg": b"x", "train/dog/2.jpg": b"x", "val/cat/3.jpg": b"x", "test/dog/4.jpg": b"x"})
    tree(tmp_path, {"val/stray.jpg": b"x"})
    found = items(ClassFolder.open(tmp_path))
    stray = found.pop("val/stray.jpg").verdict
    assert stray is not None
    assert stray.code == "not_in_a_class"
    assert {key: (json.loads(item.extra)["split"], item.labels) for key, item in found.items()} == {
        "train/cat/1.jpg": ("train", (0,)),
        "train/dog/2.jpg": ("train", (1,)),
        "val/cat/3.jpg": ("val", (0,)),
        "test/dog/4.jpg": ("test", (1,)),
    }


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    tree(tmp_path, {"train/1.jpg": b"x", "bus/2.jpg": b"x"})
    assert ClassFolder.open(tmp_path).classes() == [(0, "bus"), (1, "train")]


def test_a_class_beside_splits_is_refused(tmp_path: Path) -> None:
    tree(tmp_path, {"train/cat/1.jpg": b"x", "dog/2.jpg": b"x"})
    with pytest.raises(ValueError, match="'dog' beside them"):
        open_source(tmp_path)


def test_a_classes_file_names_the_folders(tmp_path: Path) -> None:
    tree(tmp_path, {"n01/1.jpg": b"x", "n02/2.jpg": b"x", "classes.csv": "folder,name,more\nn02,zebra,1\nn01,ape,2\n"})
    source = ClassFolder.open(tmp_path)
    assert source.classes() == [(0, "zebra"), (1, "ape")]
    assert items(source)["n01/1.jpg"].captions == ("a photo of a ape",)
    tree(tmp_path, {"n03/3.jpg": b"x"})
    with pytest.raises(ValueError, match="no row for the folder 'n03'"):
        list(source.items())


def test_what_only_accompanies_images_is_filtered_and_counted(tmp_path: Path) -> None:
    files = ["cat/1.jpg", "cat/Thumbs.db", "cat/.DS_Store", "cat/._1.jpg", "cat/notes.txt", "README.md", "stray.jpg"]
    found = items(ClassFolder.open(tree(tmp_path, dict.fromkeys([*files, "__MACOSX/cat/2.jpg"], b"x"))))
    assert set(found) == {*files, "__MACOSX"}
    codes = {key: (item.verdict.stage, item.verdict.code) if item.verdict else None for key, item in found.items()}
    assert codes.pop("cat/1.jpg") is None
    assert {codes.pop("README.md"), codes.pop("stray.jpg")} == {("filter", "not_in_a_class")}
    assert codes.pop("__MACOSX") == ("filter", "sidecar_folder")
    assert set(codes.values()) == {("filter", "sidecar_file")}


def test_a_name_that_is_no_utf8_is_an_error_row(tmp_path: Path) -> None:
    tree(tmp_path, {"cat/1.jpg": b"x"})
    (tmp_path / os.fsdecode(b"cat/caf\xe9.jpg")).write_bytes(b"x")
    verdict = items(ClassFolder.open(tmp_path))["cat/caf\\xe9.jpg"].verdict
    assert verdict is not None
    assert verdict.code == "name_not_utf8"


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    tree(tmp_path, {"source/cat/1.jpg": b"x", "elsewhere/2.jpg": b"x"})
    (tmp_path / "source/cat/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "source/cat/loop").symlink_to(tmp_path / "source/cat")
    (tmp_path / "source/cat/up").symlink_to(tmp_path / "source")
    (tmp_path / "source/dog").symlink_to(tmp_path / "elsewhere")
    assert set(items(ClassFolder.open(tmp_path / "source"))) == {"cat/1.jpg", "cat/more/2.jpg", "dog/2.jpg"}


# --- detection


def test_the_kind_is_found(shared_data: Path) -> None:
    assert isinstance(open_source(shared_data / "flickr8k"), CaptionsTable)
    assert isinstance(open_source(shared_data / "vi_captions"), CaptionsTable)
    assert isinstance(open_source(shared_data / "imagenette"), ClassFolder)


def test_a_missing_place_is_file_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_source(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "an empty folder"),
        ({"1.jpg": b"x", "2.jpg": b"x"}, "1.jpg, 2.jpg"),
        ({"images/1.jpg": b"x"}, "images/"),
        ({f"{i}.jpg": b"x" for i in range(9)}, "and 4 more"),
    ],
)
def test_a_place_of_no_kind_names_both_layouts_and_what_was_found(tmp_path: Path, files: dict[str, bytes], found: str) -> None:
    with pytest.raises(ValueError, match=r"a captions table \(.*; or a folder per class \(") as caught:
        open_source(tree(tmp_path, files))
    assert found in str(caught.value)


def test_pictures_without_captions_are_told_the_likely_remedy_first(tmp_path: Path) -> None:
    said = r"\(found 1.AVIF\); pictures without captions: put them into CLASS/ folders, or add captions.csv with image,caption; exp"
    with pytest.raises(ValueError, match=said):
        open_source(tree(tmp_path, {"1.AVIF": b"x"}))


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found a \.zip file"):
        open_source(tree(tmp_path, {"x.zip": b"PK"}) / "x.zip")


def test_a_kind_may_be_forced(tmp_path: Path) -> None:
    tree(tmp_path, {"images/1.jpg": b"x", "notes.csv": "a,b\n"})
    assert open_source(tmp_path, "class_folder").classes() == [(0, "images")]
    with pytest.raises(ValueError, match="no kind of source 'tar'; choose from corpus, webdataset"):
        open_source(tmp_path, "tar")
    with pytest.raises(ValueError, match="no captions table"):
        open_source(tree(tmp_path / "other", {"cat/1.jpg": b"x"}), "captions_table")


def test_a_column_key_is_the_key(tmp_path: Path) -> None:
    assert set(table(tmp_path, "image,key,caption\na.jpg,eins,x\na.jpg,eins,y\nb.jpg,,z\n")) == {"eins", "b.jpg"}
    with pytest.raises(ValueError, match=r"'eins' occurs twice, in captions.csv \(image 'a.jpg'\) and in .*'b.jpg'"):
        table(tmp_path, "image,key,caption\na.jpg,eins,x\nb.jpg,eins,y\n")
    with pytest.raises(ValueError, match=r"'a.jpg' several keys"):
        table(tmp_path, "image,key,caption\na.jpg,eins,x\na.jpg,zwei,y\n")
