"""A folder per class: SOURCE/CLASS/*.jpg, or SOURCE/{train,val,test}/CLASS/*.jpg, which gives each row its split.

Every file below a class folder is an input, and what turns out to be no image ends in the errors table; what is none by
its name (`notes.txt`, `Thumbs.db`) is filtered. The caption comes from a template. `classes.csv` (folder,name and perhaps
id) gives names; without it a folder's name is its class's, with spaces for underscores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from sightline.pipelines.corpus.schema import SPLIT, canonical_json
from sightline.pipelines.ingest.sources.files import (
    CLASSES,
    class_ids,
    is_no_picture,
    is_sidecar_folder,
    read_classes,
)
from sightline.pipelines.ingest.sources.item import Item, Verdict, filtered, printable, wrong
from sightline.pipelines.ingest.sources.place import Place, entries, read_bytes, walk

SPLITS = ("train", "val", "test")
# A folder of these alone is a set whose table is missing.
NOT_CLASSES = ("images", "masks")
TEMPLATE = "a photo of a {name}"


@dataclass(frozen=True)
class Folder:
    """A class folder: its name relative to the root, its class's folder name, and its split (None: there are no splits)."""

    path: str
    name: str
    split: str | None


@dataclass(frozen=True)
class ClassFolder:
    """A folder of class folders, or of splits of them."""

    root: Place
    kind: ClassVar[str] = "class_folder"
    layout: ClassVar[str] = "a folder per class (CLASS/*.jpg, or {train,val,test}/CLASS/*.jpg)"

    @classmethod
    def found(cls, path: Place) -> bool:
        """Some folder holds a file, and not all folders are merely called what they hold."""
        folders = class_folders(path)
        return any(folder.name.lower() not in NOT_CLASSES for folder in folders) and has_files(path, folders)

    @classmethod
    def open(cls, path: Place) -> ClassFolder:
        if not has_files(path, class_folders(path)):
            raise ValueError(f"{path} has no folder per class: expected {cls.layout}")
        return cls(path)

    def config(self) -> dict[str, Any]:
        return {"template": TEMPLATE}

    def classes(self) -> list[tuple[int, str]]:
        return sorted(self._classes(class_folders(self.root)).values())

    def items(self) -> Iterator[Item]:
        folders = class_folders(self.root)
        classes = self._classes(folders)
        for parent in sorted({"", *(folder.path.rpartition("/")[0] for folder in folders)}):
            for entry in entries(self.root / parent if parent else self.root):
                name = f"{parent}/{entry.name}" if parent else entry.name
                if entry.is_folder and is_sidecar_folder(entry.name):
                    yield item(name, None, (), (), "{}", filtered("sidecar_folder", "the folder is no class"))
                elif entry.nbytes is not None and name != CLASSES:
                    verdict = filtered("not_in_a_class", "the file is in no class folder")
                    yield item(name, entry.nbytes, (), (), "{}", verdict)
        for folder in folders:
            number, name = classes[folder.name]
            extra = canonical_json({SPLIT: folder.split} if folder.split else {})
            for file, nbytes in walk(self.root / folder.path):
                yield item(f"{folder.path}/{file}", nbytes, (TEMPLATE.format(name=name),), (number,), extra)

    def read(self, reference: str) -> bytes:
        return read_bytes(self.root, reference)

    def _classes(self, found: list[Folder]) -> dict[str, tuple[int, str]]:
        """Id and name by folder name."""
        folders = sorted({folder.name for folder in found})
        path = self.root / CLASSES
        rows = read_classes(path, "folder", "name")
        if not rows:
            return {folder: (number, folder.replace("_", " ")) for number, folder in enumerate(folders)}
        ids = class_ids(path, rows)
        named = {row["folder"]: (number, row["name"]) for number, row in zip(ids, rows, strict=True)}
        if len(named) != len(rows):
            raise ValueError(f"{path} names one folder twice; keep one row of each")
        if unnamed := [folder for folder in folders if folder not in named]:
            raise ValueError(f"{path} has no row for the folder {unnamed[0]!r}; add one, or take the folder away")
        return named


def item(
    name: str,
    nbytes: int | None,
    captions: tuple[str, ...],
    labels: tuple[int, ...],
    extra: str,
    verdict: Verdict | None = None,
) -> Item:
    # A name that is no UTF-8 fits in no table; it is shown with its odd bytes spelled out.
    key = printable(name)
    if verdict is None:
        if is_no_picture(name.rpartition("/")[2]):
            verdict = filtered("sidecar_file", "the file only accompanies images, by its name")
        elif key != name:
            verdict = wrong("name_not_utf8", "the file's name is not UTF-8; rename it")
        elif nbytes is None:
            verdict = wrong("missing", "there is no such file")
    return Item(key=key, image=key, nbytes=nbytes, captions=captions, labels=labels, extra=extra, verdict=verdict)


def has_files(root: Place, folders: list[Folder]) -> bool:
    return any(True for folder in folders for _ in walk(root / folder.path))


def class_folders(root: Place) -> list[Folder]:
    """The class folders of a source.

    Raises:
        ValueError: some folders are splits and some are classes.
    """
    names = subfolders(root)
    within = {name: subfolders(root / name) for name in names if name in SPLITS}
    splits = [name for name in names if within.get(name)]
    if not splits:
        return [Folder(name, name, None) for name in names]
    if others := [name for name in names if name not in splits]:
        raise ValueError(f"{root} has splits ({', '.join(splits)}) and {others[0]!r} beside them; put every class into a split")
    return [Folder(f"{split}/{name}", name, split) for split in splits for name in within[split]]


def subfolders(folder: Place) -> list[str]:
    return [entry.name for entry in entries(folder) if entry.is_folder and not is_sidecar_folder(entry.name)]
