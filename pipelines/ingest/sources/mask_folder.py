"""Images and their masks in two folders: images/*.jpg and masks/*.png of the same stem, at the root or in splits
({train,val,test}/images, as CamVid has it). `classes.csv` (id,name) at the root names the classes.

An image without a mask, and a mask without an image, are error rows: somebody has to look, since a set for segmentation that
lacks one of them is not whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from sightline.pipelines.corpus.schema import SPLIT, canonical_json
from sightline.pipelines.ingest.sources.files import is_no_picture, read_class_list
from sightline.pipelines.ingest.sources.item import Item, filtered, wrong
from sightline.pipelines.ingest.sources.place import Place, entries, read_bytes, walk

IMAGES, MASKS = "images", "masks"
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class MaskFolder:
    """A folder with `images/` and `masks/`, or with splits that have them."""

    root: Place
    kind: ClassVar[str] = "mask_folder"
    layout: ClassVar[str] = "images/ and masks/ of the same stems (or {train,val,test}/images, .../masks)"

    @classmethod
    def found(cls, path: Place) -> bool:
        return bool(places(path))

    @classmethod
    def open(cls, path: Place) -> MaskFolder:
        if not places(path):
            raise ValueError(f"{path} has no images with masks: expected {cls.layout}")
        return cls(path)

    def config(self) -> dict[str, Any]:
        return {}

    def classes(self) -> list[tuple[int, str]]:
        return read_class_list(self.root)

    def items(self) -> Iterator[Item]:
        return (item for split in places(self.root) for item in self._split(split))

    def read(self, reference: str) -> bytes:
        return read_bytes(self.root, reference)

    def _split(self, split: str) -> Iterator[Item]:
        base = f"{split}/" if split else ""
        extra = canonical_json({SPLIT: split} if split else {})
        found: dict[str, dict[str, list[tuple[str, int | None]]]] = {}
        for folder in (IMAGES, MASKS):
            stems = found[folder] = defaultdict(list)
            for name, nbytes in walk(self.root / (base + folder)):
                path = f"{base}{folder}/{name}"
                if is_no_picture(name.rpartition("/")[2]):
                    verdict = filtered("sidecar_file", "the file only accompanies images, by its name")
                    yield Item(path, path, nbytes, extra=extra, verdict=verdict)
                else:
                    stems[stem(name)].append((path, nbytes))
        for name, images in found[IMAGES].items():
            masks = found[MASKS].get(name, [])
            fault = None
            if len(masks) != 1:
                said = f"{len(masks)} files" if masks else "no file"
                fault = wrong("several_masks" if masks else "no_mask", f"{base}{MASKS}/ has {said} called {name}")
            elif len(images) > 1:
                fault = wrong("several_images", f"{base}{IMAGES}/ has {len(images)} files called {name}, and one mask is there")
            mask, mask_nbytes = masks[0] if len(masks) == 1 else (None, None)
            for path, nbytes in images:
                missing = wrong("missing", "there is no such file") if nbytes is None else None
                yield Item(path, path, nbytes, mask=mask, mask_nbytes=mask_nbytes, extra=extra, verdict=fault or missing)
        for name, masks in found[MASKS].items():
            if name not in found[IMAGES]:
                for path, nbytes in masks:
                    verdict = wrong("no_image", f"{base}{IMAGES}/ has no file called {name}")
                    yield Item(path, path, nbytes, extra=extra, verdict=verdict)


def places(root: Place) -> list[str]:
    """Where `images/` and `masks/` are: at the root (""), or in which splits; splits where the root has none of its own."""
    names = folders(root)
    if {IMAGES, MASKS} <= names:
        return [""]
    return [split for split in SPLITS if split in names and {IMAGES, MASKS} <= folders(root / split)]


def folders(place: Place) -> set[str]:
    return {entry.name for entry in entries(place) if entry.is_folder}


def stem(name: str) -> str:
    """The name without its last extension, its folders kept."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rpartition(".")[0] or base)
