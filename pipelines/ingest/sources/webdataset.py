"""WebDataset tars: one tar, a folder of them, or a brace range (`shards/{000..012}.tar`), .tar, .tar.gz or .tgz.

Members of one key (everything before the first dot of the base name, the folder kept) are one sample, contiguous or not:

    jpg, jpeg, png, webp, gif, bmp, tif, tiff   the image, exactly one
    captions.json                               all captions, a list; else `captions` in the json, a list too; else
    txt                                         one caption, byte for byte; else `caption` in the json
    json                                        an object that goes into `extra`; one of just key, captions, labels and
                                                extra, as `sightline corpus export` writes it, gives back these
    cls                                         a class: a number or a name of classes.csv (id,name) beside the tars;
                                                without that file numbers stay, names are numbered in their order
    mask.png, seg.png                           a label map

Keys stay as they are. Writers that number samples from 0 in each tar give one key to several tars; those samples, and no
others, become `TAR/KEY` with the key itself as `key` in `extra`. Two members of one name in one tar are an error.

Listing passes once over every tar. An image is then read by its offset; a compressed tar is unpacked once per block. A tar
that breaks off is an error row with its name, and its samples before the break are kept.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any, ClassVar

from braceexpand import braceexpand

from sightline.pipelines.corpus.schema import canonical_json
from sightline.pipelines.ingest.sources.files import IMAGES, class_id, class_list, is_sidecar_file, label_ids, read_class_list
from sightline.pipelines.ingest.sources.item import Item, Verdict, distinct, filtered, wrong
from sightline.pipelines.ingest.sources.place import (
    Held,
    Place,
    entries,
    exists,
    is_file,
    open_place,
    read_range,
    sizes,
)
from sightline.pipelines.ingest.sources.tars import SUFFIXES, Member, is_compressed, open_tar, scan

TEXTS = ("txt", "json", "captions.json", "cls")
MASKS = ("mask.png", "seg.png")
OWN = {"key", "captions", "labels", "extra"}
MAX_TEXT_BYTES = 16 * 2**20
SCANS = 4  # tars listed at a time: waiting for a network overlaps


@dataclass(frozen=True)
class Sample:
    """The members of one key in one tar, by lower-case extension."""

    tar: str
    key: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.tar}/{self.key}"


@dataclass(frozen=True)
class Facts:
    """What the texts of a sample say."""

    sample: Sample
    key: str
    captions: tuple[str, ...]
    labels: tuple[str | int, ...]
    extra: dict[str, Any]


@dataclass(frozen=True)
class WebDataset:
    """Tars in a folder, by name relative to it."""

    root: Place
    tars: tuple[str, ...]
    kind: ClassVar[str] = "webdataset"
    layout: ClassVar[str] = "WebDataset tars (*.tar, *.tar.gz, or a brace range)"

    @classmethod
    def found(cls, path: Place) -> bool:
        return is_pattern(path) or bool(tars_at(path))

    @classmethod
    def open(cls, path: Place) -> WebDataset:
        if is_pattern(path):
            return cls(*expand(path))
        if is_file(path):
            return cls(path.parent, (path.name,))
        found = tars_at(path)
        if not found:
            raise ValueError(f"{path} has no tars: expected {cls.layout}")
        return cls(path, tuple(found))

    def __post_init__(self) -> None:
        if odd := [name for name in self.tars if "#" in name]:
            raise ValueError(f"the tar {odd[0]!r} has # in its name, which references use; rename it")

    def config(self) -> dict[str, Any]:
        return {}

    def classes(self) -> list[tuple[int, str]]:
        if named := read_class_list(self.root):
            return named
        return class_list(label for facts in self._facts for label in facts.labels)

    def items(self) -> Iterator[Item]:
        ids = label_ids(self.classes())
        times = Counter(facts.key for facts in self._facts)
        yield from distinct((facts.sample.place, self._item(facts, ids, shared=times[facts.key] > 1)) for facts in self._facts)
        yield from self._listed[1]

    def read(self, reference: str) -> bytes:
        tar, _, rest = reference.partition("#")
        start, _, nbytes = rest.rpartition("@")[2].partition("+")
        if not is_compressed(tar):
            return read_range(self.root, tar, int(start), int(nbytes))
        return self._held.get(tar, lambda: Unpacked(self.root, tar)).read(int(start), int(nbytes))

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "tars": self.tars}

    @cached_property
    def _held(self) -> Held[Unpacked]:
        return Held()

    @cached_property
    def _facts(self) -> list[Facts]:
        return [facts_of(sample) for sample in self._listed[0]]

    @cached_property
    def _listed(self) -> tuple[list[Sample], list[Item]]:
        """The samples of all tars, and the items for what is in no sample."""
        with ThreadPoolExecutor(SCANS) as pool:
            listed = list(pool.map(self._list, self.tars))
        return [sample for samples, _ in listed for sample in samples], [item for _, items in listed for item in items]

    def _list(self, tar: str) -> tuple[list[Sample], list[Item]]:
        members, broken = scan(self.root, tar, wanted)
        samples: dict[str, Sample] = {}
        others: list[Item] = []
        for member in members:
            key, extension = split_name(member.name)
            if verdict := no_part(member, extension):
                place = f"{tar}/{printable(member.name)}"
                others.append(Item(place, place, member.nbytes, verdict=verdict, block=tar))
            else:
                parts = samples.setdefault(key, Sample(tar, key)).members
                if extension in parts:
                    raise ValueError(f"{member.name!r} occurs twice in {tar}; give each sample its own key")
                parts[extension] = member
        if broken:
            others.append(Item(tar, tar, None, verdict=wrong("torn", f"{broken}; {len(members)} members before that were read")))
        return list(samples.values()), others

    def _item(self, facts: Facts, ids: dict[str | int, int], *, shared: bool) -> Item:
        sample = facts.sample
        images = [sample.members[extension] for extension in sample.members if extension in IMAGES]
        masks = [sample.members[extension] for extension in sample.members if extension in MASKS]
        try:
            extra = canonical_json(facts.extra | ({"key": facts.key} if shared else {}))
        except ValueError as error:
            raise ValueError(f"{sample.place}.json has a value without a JSON form ({error}); correct it") from None
        return Item(
            key=sample.place if shared else facts.key,
            image=reference_to(sample.tar, images[0]) if images else sample.place,
            nbytes=images[0].nbytes if images else None,
            captions=facts.captions,
            labels=tuple(class_id(label, ids, sample.place) for label in facts.labels),
            mask=reference_to(sample.tar, masks[0]) if masks else None,
            mask_nbytes=masks[0].nbytes if masks else None,
            extra=extra,
            verdict=verdict_on(sample, len(images), len(masks)),
            block=sample.tar,
        )


class Unpacked:
    """A compressed tar, decompressed into a temporary file that goes when this does."""

    def __init__(self, root: Place, name: str) -> None:
        self._name = name
        self._file: IO[bytes] = open_tar(root, name)[0]

    def read(self, start: int, nbytes: int) -> bytes:
        data = os.pread(self._file.fileno(), nbytes, start)
        if len(data) != nbytes:
            raise OSError(f"{self._name} ends before byte {start + nbytes}: it was changed since it was listed")
        return data


def is_pattern(path: Place) -> bool:
    """Whether a location is a brace range of tars, and not a place that is called so."""
    text = str(path)
    return "{" in text and "}" in text and text.lower().endswith((*SUFFIXES, "}")) and not exists(path)


def expand(path: Place) -> tuple[Place, tuple[str, ...]]:
    """The folder and the names of a brace range of tars.

    Raises:
        ValueError: the braces do not match.
        FileNotFoundError: a tar of the range is not there.
    """
    text = str(path)
    try:
        names = list(braceexpand(text, escape=False))
    except ValueError:
        raise ValueError(f"{text} has a brace without its pair; write a range like {{000..012}}.tar") from None
    base = text[: text.index("{")].rpartition("/")[0]
    root = open_place(base)
    relative = [name[len(base) + 1 :] for name in names]
    size = sizes(root)
    if absent := [name for name in relative if size(name) is None]:
        raise FileNotFoundError(f"{base} has no {absent[0]} ({len(absent)} of {len(names)} tars are missing); correct the range")
    if len(set(relative)) != len(relative):
        raise ValueError(f"{text} names a tar twice; correct the range")
    return root, tuple(relative)


def tars_at(path: Place) -> list[str]:
    """The tars directly in a folder, or the one that the place is."""
    if is_file(path):
        return [path.name] if path.name.lower().endswith(SUFFIXES) else []
    return [entry.name for entry in entries(path) if entry.nbytes is not None and entry.name.lower().endswith(SUFFIXES)]


def split_name(name: str) -> tuple[str, str]:
    """The key and the extension of a member, in lower case; a leading `./` is no part of it."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension.lower()


def wanted(name: str, nbytes: int) -> bool:
    return split_name(name)[1] in TEXTS and nbytes <= MAX_TEXT_BYTES


def printable(name: str) -> str:
    """A name as UTF-8, its odd bytes spelled out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def no_part(member: Member, extension: str) -> Verdict | None:
    """Why a member is in no sample."""
    base = member.name.rpartition("/")[2]
    if is_sidecar_file(base):
        return filtered("sidecar_file", "the file only accompanies images")
    if not extension or base.startswith("."):
        return filtered("no_extension", "the member has no key and extension, so it is in no sample")
    if printable(member.name) != member.name:
        return wrong("name_not_utf8", "the member's name is not UTF-8; rename it")
    if not member.regular:
        return wrong("no_file", "the member is a link or a device, or stored with holes; pack the files themselves")
    if extension in TEXTS and member.content is None:
        return wrong("too_many_bytes", f"a text of more than {MAX_TEXT_BYTES:,} bytes")
    return None


def verdict_on(sample: Sample, images: int, masks: int) -> Verdict | None:
    have = ", ".join(sample.members)
    if not images:
        return wrong("no_image", f"the sample has {have} and no image ({', '.join(IMAGES)})")
    if images > 1:
        return wrong("several_images", f"the sample has {have}; one image makes a row")
    if masks > 1:
        return wrong("several_masks", f"the sample has {have}; keep one mask")
    return None


def reference_to(tar: str, member: Member) -> str:
    return f"{tar}#{member.name}@{member.start}+{member.nbytes}"


def text_of(sample: Sample, extension: str) -> str | None:
    """The text of a member; None where there is none.

    Raises:
        ValueError: it is not UTF-8.
    """
    member = sample.members.get(extension)
    if member is None:
        return None
    assert member.content is not None
    try:
        return member.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{sample.place}.{extension} is not UTF-8 (byte {error.start}); write text as UTF-8") from None


def json_of(sample: Sample, extension: str) -> Any:
    text = text_of(sample, extension)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{sample.place}.{extension} is no JSON ({error}); correct it") from None
    if extension == "json" and not isinstance(value, dict):
        raise ValueError(f"{sample.place}.json is no JSON object; write {{...}}")
    return value


def facts_of(sample: Sample) -> Facts:
    """What the texts of a sample say.

    Raises:
        ValueError: one of them is not what it should be.
    """
    about: dict[str, Any] = json_of(sample, "json") or {}
    if about.keys() == OWN and isinstance(about["key"], str) and isinstance(about["extra"], dict):
        labels = about["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str | int) for label in labels):
            raise ValueError(f"{sample.place}.json has the labels {labels!r}; give a list of numbers or names")
        return Facts(sample, about["key"], checked(about["captions"], sample, empty=True), tuple(labels), about["extra"])
    cls = (text_of(sample, "cls") or "").strip()
    used = None
    if "captions.json" in sample.members:
        value: Any = json_of(sample, "captions.json")
    elif isinstance(about.get("captions"), list):
        value, used = about["captions"], "captions"
    elif "txt" in sample.members:
        value = text_of(sample, "txt")
    else:
        used = next((name for name in ("captions", "caption") if about.get(name) is not None), None)
        value = about[used] if used else None
    extra = {name: entry for name, entry in about.items() if name != used}
    return Facts(sample, sample.key, checked(value, sample), (cls,) if cls else (), extra)


def checked(value: Any, sample: Sample, *, empty: bool = False) -> tuple[str, ...]:
    """Captions as they stand in a text or in JSON; empty ones are none.

    Raises:
        ValueError: they are no text.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    for caption in values:
        if not is_text(caption):
            raise ValueError(
                f"{sample.place} has the caption {caption!r}, which is no text; captions are a text or a list of texts"
            )
    return tuple(caption for caption in values if caption or empty)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)
