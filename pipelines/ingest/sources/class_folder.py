"""A folder per class: SOURCE/CLASS/*.jpg, or SOURCE/{train,val,test}/CLASS/*.jpg, which gives each row its split.

Every file below a class folder is an input, whatever its name: what is no image ends in the errors table. The caption
comes from a template. `classes.csv` (folder,name and perhaps id) gives names; without it a folder's name is its
class's, with spaces for underscores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sightline.pipelines.corpus.schema import SPLIT, canonical_json
from sightline.pipelines.ingest.sources.files import (
    class_ids,
    file_size,
    is_sidecar_file,
    is_sidecar_folder,
    read_classes,
)
from sightline.pipelines.ingest.sources.item import Item, Verdict, filtered

SPLITS = ("train", "val", "test")
CLASSES = "classes.csv"
# A folder of these alone is a set whose table is missing.
NOT_CLASSES = ("images", "masks")
TEMPLATE = "a photo of a {name}"


@dataclass(frozen=True)
class ClassFolder:
    """A folder of class folders, or of splits of them."""

    root: Path
    kind: ClassVar[str] = "class_folder"
    layout: ClassVar[str] = "a folder per class (CLASS/*.jpg, or {train,val,test}/CLASS/*.jpg)"

    @classmethod
    def found(cls, path: Path) -> bool:
        """Some folder holds a file, and not all folders are merely called what they hold."""
        return has_files(path) and any(folder.name.lower() not in NOT_CLASSES for _, folder in class_folders(path))

    @classmethod
    def open(cls, path: Path) -> ClassFolder:
        if not has_files(path):
            raise ValueError(f"{path} has no folder per class: expected {cls.layout}")
        return cls(path)

    def config(self) -> dict[str, Any]:
        return {"template": TEMPLATE}

    def classes(self) -> list[tuple[int, str]]:
        return sorted(self._classes().values())

    def items(self) -> Iterator[Item]:
        classes = self._classes()
        folders = class_folders(self.root)
        for parent in sorted({self.root, *(folder.parent for _, folder in folders)}):
            for entry in sorted(parent.iterdir()):
                if entry.is_dir() and is_sidecar_folder(entry.name):
                    yield self._item(entry, (), (), "{}", filtered("sidecar_folder", "the folder is no class"))
                elif entry.is_file() and entry != self.root / CLASSES:
                    yield self._item(entry, (), (), "{}", filtered("not_in_a_class", "the file is in no class folder"))
        for split, folder in folders:
            number, name = classes[folder.name]
            extra = canonical_json({SPLIT: split} if split else {})
            for path in walk(folder):
                yield self._item(path, (TEMPLATE.format(name=name),), (number,), extra)

    def read(self, reference: str) -> bytes:
        return (self.root / reference).read_bytes()

    def _item(
        self, path: Path, captions: tuple[str, ...], labels: tuple[int, ...], extra: str, verdict: Verdict | None = None
    ) -> Item:
        name = path.relative_to(self.root).as_posix()
        # A name that is no UTF-8 fits in no table; it is shown with its odd bytes spelled out.
        key = os.fsencode(name).decode("utf-8", "backslashreplace")
        nbytes = file_size(path)
        if verdict is None:
            if is_sidecar_file(path.name):
                verdict = filtered("sidecar_file", "the file only accompanies images")
            elif key != name:
                verdict = Verdict("list", "name_not_utf8", "the file's name is not UTF-8; rename it")
            elif nbytes is None:
                verdict = Verdict("list", "missing", "there is no such file")
        return Item(key=key, image=key, nbytes=nbytes, captions=captions, labels=labels, extra=extra, verdict=verdict)

    def _classes(self) -> dict[str, tuple[int, str]]:
        """Id and name by folder name."""
        folders = sorted({folder.name for _, folder in class_folders(self.root)})
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


def has_files(path: Path) -> bool:
    return path.is_dir() and any(True for _, folder in class_folders(path) for _ in walk(folder))


def class_folders(root: Path) -> list[tuple[str | None, Path]]:
    """The class folders of a source, each with its split (None: the source has no splits).

    Raises:
        ValueError: some folders are splits and some are classes.
    """
    folders = subfolders(root)
    splits = [folder for folder in folders if folder.name in SPLITS and subfolders(folder)]
    if not splits:
        return [(None, folder) for folder in folders]
    if others := [folder.name for folder in folders if folder not in splits]:
        names = ", ".join(folder.name for folder in splits)
        raise ValueError(f"{root} has splits ({names}) and {others[0]!r} beside them; put every class into a split")
    return [(split.name, folder) for split in splits for folder in subfolders(split)]


def subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_sidecar_folder(entry.name))


def walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, sorted; links to folders are followed, but never into a circle."""
    above = {folder.resolve()}
    for parent, names, files in os.walk(folder, followlinks=True):
        links = [name for name in names if (Path(parent) / name).is_symlink()]
        for name in links:
            target = (Path(parent) / name).resolve()
            if target in above or any(target in seen.parents for seen in above):
                names.remove(name)
            above.add(target)
        names.sort()
        yield from (Path(parent) / name for name in sorted(files))
