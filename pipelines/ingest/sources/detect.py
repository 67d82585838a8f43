"""Which kind of source lies at a place. A new kind is a new file beside this one and a line in `KINDS`.

The first kinds know their own by sure marks (a manifest, tars, annotation files, a column of bytes), so a place that two of
them claim is asked about rather than guessed at. The last ones are what any folder with images may be, in this order.
"""

from __future__ import annotations

from pathlib import Path

from sightline.pipelines.ingest.sources.captions_table import CaptionsTable
from sightline.pipelines.ingest.sources.class_folder import ClassFolder
from sightline.pipelines.ingest.sources.coco import Coco
from sightline.pipelines.ingest.sources.files import picture_endings
from sightline.pipelines.ingest.sources.flickr_tokens import FlickrTokens
from sightline.pipelines.ingest.sources.item import Source
from sightline.pipelines.ingest.sources.mask_folder import MaskFolder
from sightline.pipelines.ingest.sources.other_corpus import OtherCorpus
from sightline.pipelines.ingest.sources.parquet import ParquetFiles
from sightline.pipelines.ingest.sources.place import Place, entries, exists, is_file, open_place
from sightline.pipelines.ingest.sources.url_list import UrlList
from sightline.pipelines.ingest.sources.webdataset import WebDataset

SURE: tuple[type[Source], ...] = (OtherCorpus, WebDataset, Coco, FlickrTokens, ParquetFiles)
LIKELY: tuple[type[Source], ...] = (UrlList, CaptionsTable, MaskFolder, ClassFolder)
KINDS: dict[str, type[Source]] = {kind.kind: kind for kind in (*SURE, *LIKELY)}


def open_source(location: str | Place, kind: str | None = None) -> Source:
    """The source at a place, a path or a URL; its kind is found, or given by name.

    Raises:
        FileNotFoundError: there is nothing at that place.
        PermissionError, OSError: the place cannot be read, or reached.
        ModuleNotFoundError: the package for that kind of URL is not installed.
        ValueError: nothing that can be ingested is there, or not of that kind, or several kinds.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"there is no kind of source {kind!r}; choose from {', '.join(KINDS)}")
    place = open_place(location)
    if isinstance(place, Path) and place.is_symlink() and not exists(place):
        raise FileNotFoundError(f"{place} is a link that leads nowhere; correct it, or name the folder itself")
    if "{" not in str(place) and not exists(place):  # a brace range need not exist itself
        remedy = "name a folder with images to ingest" if isinstance(place, Path) else "check the bucket's and the folder's name"
        raise FileNotFoundError(f"there is no {place}; {remedy}")
    if is_file(place / "_staging" / "export.json"):  # tars or images that look like all of them
        raise ValueError(f"{place} is an export that was interrupted; the same `sightline corpus export` again finishes it")
    if kind is not None:
        return KINDS[kind].open(place)
    claims = [candidate for candidate in SURE if candidate.found(place)]
    if claims and CaptionsTable.claims(place):
        claims.append(CaptionsTable)
    if len(claims) > 1:
        names = " or ".join(candidate.kind for candidate in claims)
        raise ValueError(f"{place} may be {names}; name the kind, e.g. --kind {claims[0].kind}, or a file in it")
    for candidate in claims or [candidate for candidate in LIKELY if candidate.found(place)]:
        return candidate.open(place)
    if not exists(place):
        raise FileNotFoundError(f"there is no {place}; name a folder, or a brace range of tars or tables that exist")
    layouts = "; or ".join(candidate.layout for candidate in KINDS.values())
    bare = "pictures without captions: put them into CLASS/ folders, or add captions.csv with image,caption; "
    remedy = bare if has_pictures(place) or has_pictures(place / "images") else ""
    raise ValueError(f"{place} holds nothing that can be ingested (found {contents(place)}); {remedy}expected {layouts}")


def has_pictures(folder: Place) -> bool:
    """Whether pictures, by their names, lie directly in a folder."""
    files = (entry.name for entry in entries(folder) if entry.nbytes is not None)
    return any(name.lower().rpartition(".")[2] in picture_endings() for name in files)


def contents(place: Place) -> str:
    """What is at a place, in a few words."""
    if is_file(place):
        return f"a {place.suffix or 'nameless'} file"
    names = [entry.name + ("/" if entry.is_folder else "") for entry in entries(place)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "an empty folder"
