"""COCO annotations: `captions_*.json` and `instances_*.json` beside their images, or in `annotations/`.

The end of a file's name is the split (`val2017` → val); the files of one split describe the same images, matched by id. An
image's key is its `file_name`; its captions and objects come in the order of their annotations' ids, its labels are the
distinct categories of its objects, ascending (ids have gaps and keep them). Into `extra` go the split, the image's own
fields, and the objects with box and category but without outlines. Images without captions or objects are images too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from sightline.pipelines.corpus.schema import SPLIT, canonical_json
from sightline.pipelines.ingest.sources.files import escapes
from sightline.pipelines.ingest.sources.item import Item, distinct, wrong
from sightline.pipelines.ingest.sources.place import Place, entries, is_file, read_bytes, read_text, sizes

NAME = re.compile(r"(?:captions|instances)_(.+)\.json")
FOLDER = "annotations"
OBJECT = ("bbox", "iscrowd", "area")


@dataclass
class Image:
    """An image of one split, as its files describe it."""

    file: str
    fields: dict[str, Any]
    captions: list[tuple[int, str]] = field(default_factory=list)
    objects: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


@dataclass(frozen=True)
class Coco:
    """Annotation files, and the folder that the images lie below."""

    root: Place
    files: tuple[Place, ...]
    kind: ClassVar[str] = "coco"
    layout: ClassVar[str] = "COCO annotations (captions_*.json, instances_*.json, perhaps in annotations/)"

    @classmethod
    def found(cls, path: Place) -> bool:
        return bool(annotation_files(path))

    @classmethod
    def open(cls, path: Place) -> Coco:
        files = annotation_files(path)
        if not files:
            raise ValueError(f"{path} has no COCO annotations: expected {cls.layout}")
        folder = files[0].parent
        return cls(folder.parent if folder.name == FOLDER else folder, tuple(files))

    def config(self) -> dict[str, Any]:
        return {}

    def classes(self) -> list[tuple[int, str]]:
        names: dict[int, str] = {}
        for path, data in self._data:
            for category in data.get("categories", []):
                number, name = category.get("id"), category.get("name")
                if not (isinstance(number, int) and 0 <= number < 2**31 and isinstance(name, str) and name):
                    raise ValueError(f"{path.name}: the category {category!r:.200} needs a whole number `id` and a `name`")
                if names.setdefault(number, name) != name:
                    raise ValueError(f"{path.name} calls the category {number} {name!r} and it was {names[number]!r}; choose one")
        return sorted(names.items())

    def items(self) -> Iterator[Item]:
        return distinct(self._items())

    def read(self, reference: str) -> bytes:
        return read_bytes(self.root, reference)

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "files": self.files}

    @cached_property
    def _data(self) -> list[tuple[Place, dict[str, Any]]]:
        return [(path, parse(path)) for path in self.files]

    def _items(self) -> Iterator[tuple[str, Item]]:
        known = {number for number, _ in self.classes()}
        size = sizes(self.root)
        splits: dict[str, dict[int, Image]] = {}
        for path, data in self._data:
            gather(path, data, splits.setdefault(suffix_of(path), {}), known)
        for suffix, images in splits.items():
            for image in images.values():
                yield f"{image.file} (image {image.fields['id']})", self._item(image, suffix, size)

    def _item(self, image: Image, suffix: str, size: Callable[[str], int | None]) -> Item:
        name, split = image.fields["file_name"], split_of(suffix)
        folders = ("", "images/", f"{suffix}/", f"images/{suffix}/", f"{split}/", f"images/{split}/")
        found = [] if escapes(name) else [(folder + name, size(folder + name)) for folder in dict.fromkeys(folders)]
        reference, nbytes = next(((there, n) for there, n in found if n is not None), (name, None))
        verdict = None
        if escapes(name):
            verdict = wrong("outside", "the file lies outside of the source's folder")
        elif nbytes is None:
            verdict = wrong("missing", f"there is no such file, nor in {', '.join(folder for folder in folders if folder)}")
        extra = {name: value for name, value in image.fields.items() if name not in ("file_name", "width", "height")}
        objects = [thing for _, thing in sorted(image.objects, key=lambda entry: entry[0])]
        extra |= ({SPLIT: split} if split else {}) | ({"objects": objects} if objects else {})
        try:
            about = canonical_json(extra)
        except (ValueError, RecursionError) as error:
            about, fault = "{}", wrong("no_json", f"{image.file} has a value without a JSON form ({error}); correct it")
            verdict = verdict or fault
        return Item(
            key=name,
            image=reference,
            nbytes=nbytes,
            captions=tuple(caption for _, caption in sorted(image.captions) if caption),
            labels=tuple(sorted({thing["category_id"] for thing in objects})),
            extra=about,
            verdict=verdict,
        )


def annotation_files(path: Place) -> list[Place]:
    """The file itself, or those of a folder, or of its `annotations/`."""
    if is_file(path):
        return [path] if path.suffix.lower() == ".json" and path.name != "manifest.json" else []
    for folder in (path, path / FOLDER):
        if found := [entry.name for entry in entries(folder) if entry.nbytes is not None and NAME.fullmatch(entry.name)]:
            return [folder / name for name in found]
    return []


def suffix_of(path: Place) -> str:
    match = NAME.fullmatch(path.name)
    return match.group(1) if match else ""


def split_of(suffix: str) -> str:
    """`val2017` is val; a suffix that is nothing but digits stays."""
    return suffix.rstrip("0123456789").rstrip("_-") or suffix


def parse(path: Place) -> dict[str, Any]:
    """The content of an annotation file.

    Raises:
        ValueError: it is no JSON, or not of COCO's form.
    """
    try:
        data = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON ({error}); write it again") from None
    lists = [name for name in ("images", "annotations") if not isinstance(data, dict) or not is_list_of_objects(data.get(name))]
    if lists or not is_list_of_objects(data.get("categories", [])):
        missing = (lists or ["categories"])[0]
        raise ValueError(f"{path.name} has no list of objects `{missing}`; COCO annotations have images, annotations, categories")
    return dict(data)


def is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def gather(path: Place, data: dict[str, Any], images: dict[int, Image], known: set[int]) -> None:
    """Add what one file says about the images of its split.

    Raises:
        ValueError: something is not what it should be, or contradicts another file of the split.
    """
    here: set[int] = set()
    for entry in data["images"]:
        number, name = entry.get("id"), entry.get("file_name")
        if not isinstance(number, int) or not isinstance(name, str) or not name:
            raise ValueError(f"{path.name}: the image {entry!r:.200} needs a whole number `id` and a `file_name`")
        if number in here:
            raise ValueError(f"{path.name} gives the id {number} to two images; give each its own")
        here.add(number)
        image = images.setdefault(number, Image(path.name, entry))
        if image.fields["file_name"] != name:
            raise ValueError(f"the image {number} is {image.fields['file_name']!r} in {image.file} and {name!r} in {path.name}")
    for entry in data["annotations"]:
        number, image_id = entry.get("id"), entry.get("image_id")
        if not isinstance(number, int):
            raise ValueError(f"{path.name}: the annotation {entry!r:.200} needs a whole number `id`")
        if not isinstance(image_id, int) or image_id not in here:
            lacks = f"the annotation {number} is of the image {image_id!r:.100}, which `images` lacks"
            raise ValueError(f"{path.name}: {lacks}; add it, or correct the annotation")
        if "caption" in entry:
            if not isinstance(entry["caption"], str):
                raise ValueError(
                    f"{path.name}: the annotation {number} has the caption {entry['caption']!r:.100}, which is no text"
                )
            images[image_id].captions.append((number, entry["caption"]))
        if "category_id" in entry:
            if not isinstance(entry["category_id"], int) or entry["category_id"] not in known:
                lacks = f"has the category {entry['category_id']!r:.100}; `categories` lacks it"
                raise ValueError(f"{path.name}: the annotation {number} {lacks}")
            thing = {name: entry[name] for name in OBJECT if name in entry}
            images[image_id].objects.append((number, {"id": number, "category_id": int(entry["category_id"]), **thing}))
