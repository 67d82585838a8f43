"""COCO, Flickr's token files, masks and other corpora against an independent reading of the same files; no Ray."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions
from sightline.pipelines.ingest.sources.coco import Coco
from sightline.pipelines.ingest.sources.detect import open_source
from sightline.pipelines.ingest.sources.flickr_tokens import FlickrTokens
from sightline.pipelines.ingest.sources.item import Item, sound
from sightline.pipelines.ingest.sources.mask_folder import MaskFolder
from sightline.pipelines.ingest.sources.other_corpus import OtherCorpus
from tests.pipelines.sources import NFD, codes, extra, items, tree

# --- COCO


def test_coco_json_is_what_its_files_say(shared_data: Path) -> None:
    folder = shared_data / "coco_json"
    source = open_source(folder)
    assert isinstance(source, Coco)
    captions, objects = (json.loads((folder / f"{name}_val2017.json").read_bytes()) for name in ("captions", "instances"))
    found = items(source)
    assert set(found) == {image["file_name"] for image in captions["images"]}
    assert source.classes() == sorted((c["id"], c["name"]) for c in objects["categories"])
    for image in objects["images"]:
        item = found[image["file_name"]]
        of_image = [a for a in objects["annotations"] if a["image_id"] == image["id"]]
        texts = sorted((a["id"], a["caption"]) for a in captions["annotations"] if a["image_id"] == image["id"])
        assert item.captions == tuple(text for _, text in texts)
        assert set(item.labels) == {a["category_id"] for a in of_image}
        assert {thing["id"]: thing["bbox"] for thing in extra(item).get("objects", [])} == {a["id"]: a["bbox"] for a in of_image}
        assert (extra(item)["split"], extra(item)["id"]) == ("val", image["id"])
        assert source.read(item.image) == (folder / "images" / image["file_name"]).read_bytes()
    assert sum(not item.labels for item in found.values()) == 1


def coco(tmp_path: Path, **files: Any) -> dict[str, Item]:
    tree(tmp_path, {f"{name}.json": json.dumps(data) for name, data in files.items()})
    return items(Coco.open(tmp_path))


def test_coco_splits_are_the_ends_of_the_files_names(tmp_path: Path) -> None:
    tree(tmp_path, {"train2017/1.jpg": b"1", "val2017/2.jpg": b"22"})
    one, two = ({"images": [{"id": i, "file_name": f"{i}.jpg"}], "annotations": []} for i in (1, 2))
    found = coco(tmp_path, captions_train2017=one, captions_val2017=two)
    assert {key: (extra(item)["split"], item.image) for key, item in found.items()} == {
        "1.jpg": ("train", "train2017/1.jpg"),
        "2.jpg": ("val", "val2017/2.jpg"),
    }


@pytest.mark.parametrize(("change", "said"), [
    ({"annotations": [{"id": 1, "image_id": 9, "caption": "x"}]}, "of the image 9, which `images` lacks"),
    ({"annotations": [{"id": 1, "image_id": 1, "caption": 7}]}, "caption 7, which is no text"),
    ({"annotations": [{"id": 1, "image_id": 1, "category_id": 3}]}, "category 3; `categories` lacks it"),
    ({"images": [{"id": 1}]}, "a `file_name`"),
    ({"images": [{"id": 1, "file_name": "a"}] * 2}, "the id 1 to two images"),
    ({"images": 3}, "no list of objects `images`"),
    ({"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}]}, "key 'a' occurs twice, in captions_x.json .image 1."),
])  # fmt: skip
def test_coco_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        coco(tmp_path, captions_x={"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], **change})


@pytest.mark.parametrize("image_id", [[1], {"id": 1}, None, "1"])
def test_an_annotation_of_no_image_is_one_sentence(tmp_path: Path, image_id: Any) -> None:
    note = {"id": 1, "image_id": image_id, "caption": "x"}
    with pytest.raises(ValueError, match=r"captions_x.json: the annotation 1 is of the image .*, which `images` lacks; add it"):
        coco(tmp_path, captions_x={"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [note]})
    thing = {"id": 1, "image_id": 1, "category_id": image_id}
    with pytest.raises(ValueError, match=r"captions_x.json: the annotation 1 has the category .*; `categories` lacks it"):
        coco(tmp_path, captions_x={"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [thing]})


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_has_not_costs_its_image_alone(tmp_path: Path, number: str) -> None:
    images = ", ".join(f'{{"id": {i}, "file_name": "{i}.jpg"}}' for i in (1, 2))
    things = ", ".join(f'{{"id": {i}, "image_id": {i}, "category_id": 3, "area": {area}}}' for i, area in ((1, number), (2, "1.5")))
    text = f'{{"images": [{images}], "annotations": [{things}], "categories": [{{"id": 3, "name": "cat"}}]}}'
    found = items(Coco.open(tree(tmp_path, {"instances_x.json": text, "1.jpg": "1", "2.jpg": "2"})))
    assert codes(found) == {"1.jpg": "no_json"}
    assert "instances_x.json has a value without a JSON form" in str(found["1.jpg"].verdict)
    assert (found["1.jpg"].labels, extra(found["2.jpg"])["objects"][0]["area"]) == ((3,), 1.5)


def test_a_lone_surrogate_in_coco_is_one_error_row(tmp_path: Path) -> None:
    images: list[dict[str, Any]] = [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)]
    images[0]["file_name"], images[1]["licence"] = "\ud800.jpg", "\ud800"
    notes = [{"id": 1, "image_id": 2, "caption": "\ud800"}, {"id": 2, "image_id": 3, "caption": "x"}]
    tree(tmp_path, {f"{i}.jpg": b"x" for i in range(4)})
    found = {item.key: item for item in map(sound, coco(tmp_path, captions_x={"images": images, "annotations": notes}).values())}
    assert codes(found) == dict.fromkeys(["\\ud800.jpg", "1.jpg", "2.jpg"], "text_not_utf8")
    assert found["3.jpg"].captions == ("x",)


def test_a_category_that_is_no_unicode_is_one_sentence(tmp_path: Path) -> None:
    data = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [], "categories": [{"id": 1, "name": "\ud800"}]}
    tree(tmp_path / "source", {"instances_x.json": json.dumps(data)})
    with pytest.raises(ValueError, match=r"the class '.*ud800' has a name that is not UTF-8"):
        prepare(tmp_path / "source", tmp_path / "corpus", IngestOptions())


# --- Flickr


def test_flickr_tokens_are_read_line_by_line(tmp_path: Path) -> None:
    text = f"b.jpg#1\tsecond\nb.jpg#0\t{NFD} \u2028 x\r\na.jpg#0\tone\n2258277193_586949ec62.jpg.1#0\tgone\n"
    lists = {"Flickr_8k.trainImages.txt": "a.jpg\n", "Flickr_8k.devImages.txt": "b.jpg\nc.jpg\n"}
    tree(tmp_path / "Flickr8k_text", {"Flickr8k.token.txt": text, "Flickr8k.lemma.token.txt": "b.jpg#0\tx\n", **lists})
    tree(tmp_path / "Flicker8k_Dataset", {f"{name}.jpg": name.encode() for name in "abc"})
    source = open_source(tmp_path)
    assert isinstance(source, FlickrTokens)
    found = items(source)
    assert found["b.jpg"].captions == (f"{NFD} \u2028 x", "second")
    assert {key: extra(item).get("split") for key, item in found.items() if not item.verdict} == {
        "a.jpg": "train", "b.jpg": "val", "c.jpg": "val",
    }  # fmt: skip
    assert codes(found) == {"2258277193_586949ec62.jpg.1": "missing"}
    assert items(open_source(tmp_path / "Flickr8k_text" / "Flickr8k.token.txt")) == found


@pytest.mark.parametrize(("text", "said"), [
    ("a.jpg#0 no tab\n", "line 1 is not"),
    ("a.jpg\tx\n", "line 1 is not"),
    ("a.jpg#0\tx\na.jpg#0\ty\n", "line 2 gives 'a.jpg#0' a second time"),
])  # fmt: skip
def test_a_token_file_of_another_form_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        items(open_source(tree(tmp_path, {"x.token": text})))


# --- another corpus


def test_another_corpus_gives_its_rows_unchanged(digits: Corpus) -> None:
    source = open_source(digits.location)
    assert isinstance(source, OtherCorpus)
    assert source.classes() == [(entry["id"], entry["name"]) for entry in digits.manifest.classes]
    found = items(source)
    worker = pickle.loads(pickle.dumps(source))
    for row in map(digits.row, range(0, digits.rows, 17)):
        item = found[row.key]
        assert (item.captions, item.labels, item.extra, item.nbytes) == (row.captions, row.labels, row.extra, len(row.image))
        assert worker.read(item.image) == bytes(row.image)
        assert (item.mask and worker.read(item.mask)) == (None if row.mask is None else bytes(row.mask))
    assert len(found) == digits.rows


def test_a_damaged_row_of_another_corpus_is_an_error_row_and_the_others_are_kept(digits: Corpus, tmp_path: Path) -> None:
    shutil.copytree(digits.location, tmp_path / "source")
    row = digits.row(0)
    for path in (tmp_path / "source").rglob("*.arrow"):
        data, image = path.read_bytes(), bytes(row.image)
        path.write_bytes(data.replace(image, image[:-20] + bytes([image[-20] ^ 1]) + image[-19:]))
    source = open_source(tmp_path / "source")
    found = items(source)
    with pytest.raises(OSError, match=r"row 0 .* is damaged.*see `sightline corpus verify"):
        source.read(found[row.key].image)
    last = digits.row(digits.rows - 1)  # of another shard
    assert source.read(found[last.key].image) == bytes(last.image)


# --- masks


def test_camvid_is_pairs_of_images_and_masks_in_splits(shared_data: Path) -> None:
    folder = shared_data / "camvid"
    source = open_source(folder)
    assert isinstance(source, MaskFolder)
    found = items(source)
    assert set(found) == {path.relative_to(folder).as_posix() for path in folder.glob("*/images/*.jpg")}
    for key, item in found.items():
        split, _, name = key.split("/")
        assert (extra(item), item.verdict) == ({"split": split}, None)
        assert item.mask == f"{split}/masks/{name.removesuffix('.jpg')}.png"
        assert item.mask_nbytes == (folder / item.mask).stat().st_size
    with (folder / "classes.csv").open(encoding="utf-8") as file:
        assert source.classes() == [(int(row["id"]), row["name"]) for row in csv.DictReader(file)]


def test_masks_without_splits_and_classes_with_gaps(shared_data: Path) -> None:
    source = open_source(shared_data / "coco_semseg")
    assert isinstance(source, MaskFolder)
    assert len(items(source)) == 24
    assert not codes(items(source))
    assert len(source.classes()) == 130


def test_an_image_without_a_mask_and_a_mask_without_an_image_are_said(tmp_path: Path) -> None:
    files = ["images/a.jpg", "masks/a.png", "images/b.jpg", "masks/c.png", "images/d.jpg", "images/d.png", "masks/d.png"]
    tree(tmp_path, dict.fromkeys([*files, "images/Thumbs.db"], b"x"))
    assert codes(items(open_source(tmp_path))) == {
        "images/b.jpg": "no_mask", "masks/c.png": "no_image", "images/Thumbs.db": "sidecar_file",
        "images/d.jpg": "several_images", "images/d.png": "several_images",
    }  # fmt: skip
