"""Flickr's token files: lines `name.jpg#0<TAB>caption`, as Flickr8k.token.txt and results_20130124.token have them.

Captions come in the order of their numbers. Lists like Flickr_8k.trainImages.txt beside the token file give splits (`dev`
is `val`), and an image that only they name has no captions. Images lie beside the text, or in one of the folders that the
sets are distributed with.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from sightline.pipelines.corpus.schema import SPLIT, canonical_json
from sightline.pipelines.ingest.sources.files import escapes
from sightline.pipelines.ingest.sources.item import Item, wrong
from sightline.pipelines.ingest.sources.place import Place, entries, is_file, read_bytes, read_text, sizes

TOKENS = re.compile(r"(?!.*\.lemma\.).+\.token(\.txt)?", re.IGNORECASE)
TEXT_FOLDER = re.compile(r"flickr.*text", re.IGNORECASE)
LIST = re.compile(r".*?(train|dev|val|test)_?Images\.txt", re.IGNORECASE)
FOLDERS = ("", "images/", "Images/", "Flicker8k_Dataset/", "Flickr8k_Dataset/", "flickr30k-images/", "flickr30k_images/")
SPLITS = {"dev": "val"}


@dataclass(frozen=True)
class FlickrTokens:
    """A token file, and the folder that the images lie below."""

    root: Place
    tokens: Place
    kind: ClassVar[str] = "flickr_tokens"
    layout: ClassVar[str] = "a Flickr token file (Flickr8k.token.txt, results_20130124.token)"

    @classmethod
    def found(cls, path: Place) -> bool:
        return bool(token_files(path))

    @classmethod
    def open(cls, path: Place) -> FlickrTokens:
        found = token_files(path) or ([path] if is_file(path) else [])
        if not found:
            raise ValueError(f"{path} has no token file: expected {cls.layout}")
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise ValueError(f"{path} has several token files ({names}); name one of them instead of the folder")
        folder = found[0].parent
        return cls(folder.parent if TEXT_FOLDER.fullmatch(folder.name) else folder, found[0])

    def config(self) -> dict[str, Any]:
        return {}

    def classes(self) -> list[tuple[int, str]]:
        return []

    def items(self) -> Iterator[Item]:
        captions, splits, size = read_tokens(self.tokens), read_splits(self.tokens.parent), sizes(self.root)
        for name in dict.fromkeys((*captions, *splits)):
            reference, nbytes, verdict = name, None, None
            if escapes(name):
                verdict = wrong("outside", "the file lies outside of the source's folder")
            else:
                found = ((folder + name, size(folder + name)) for folder in FOLDERS)
                reference, nbytes = next(((there, n) for there, n in found if n is not None), (name, None))
                if nbytes is None:
                    verdict = wrong("missing", f"there is no such file, nor in {', '.join(filter(None, FOLDERS))}")
            yield Item(
                key=name,
                image=reference,
                nbytes=nbytes,
                captions=tuple(text for _, text in sorted(captions.get(name, {}).items()) if text),
                extra=canonical_json({SPLIT: splits[name]} if name in splits else {}),
                verdict=verdict,
            )

    def read(self, reference: str) -> bytes:
        return read_bytes(self.root, reference)


def token_files(path: Place) -> list[Place]:
    if is_file(path):
        return [path] if TOKENS.fullmatch(path.name) else []
    here = entries(path)
    folders = [path, *(path / entry.name for entry in here if entry.is_folder and TEXT_FOLDER.fullmatch(entry.name))]
    for folder in folders:
        listed = here if folder is path else entries(folder)
        if found := [folder / entry.name for entry in listed if entry.nbytes is not None and TOKENS.fullmatch(entry.name)]:
            return found
    return []


def lines(path: Place) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not empty, each with its place; only a line end ends a line, whatever Unicode thinks."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line := line.removesuffix("\r"):
            yield f"{path.name} line {number}", line


def read_tokens(path: Place) -> dict[str, dict[int, str]]:
    """Captions by image and number.

    Raises:
        ValueError: a line is not of the form, or a number occurs twice.
    """
    captions: dict[str, dict[int, str]] = {}
    for place, line in lines(path):
        head, tab, caption = line.partition("\t")
        name, _, number = head.rpartition("#")
        if not tab or not name or not (number.isascii() and number.isdigit()):
            raise ValueError(f"{place} is not `name.jpg#0<TAB>caption`; correct it")
        numbered = captions.setdefault(name, {})
        if int(number) in numbered:
            raise ValueError(f"{place} gives {head!r} a second time; number an image's captions 0, 1, 2 ...")
        numbered[int(number)] = caption
    return captions


def read_splits(folder: Place) -> dict[str, str]:
    """Splits by image.

    Raises:
        ValueError: an image is in two of them.
    """
    splits: dict[str, str] = {}
    for entry in entries(folder):
        if entry.nbytes is not None and (match := LIST.fullmatch(entry.name)):
            split = SPLITS.get(match.group(1).lower(), match.group(1).lower())
            for place, name in lines(folder / entry.name):
                if splits.setdefault(name.strip(), split) != split:
                    raise ValueError(f"{place} puts {name.strip()!r} into {split}, and it is in {splits[name.strip()]}; choose one")
    return splits
