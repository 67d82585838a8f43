"""WebDataset tars: one tar, a folder of them, or a brace range (`shards/{000..012}.tar`), .tar, .tar.gz or .tgz.

Members of one key (everything before the first dot of the base name, the folder kept) are one sample, contiguous or not:

    jpg, png, webp, tif, avif ...               the image, exactly one, in any format that we decode
    captions.json                               all captions, a list; else `captions` in the json, a list too; else
    txt                                         one caption, byte for byte; else `caption` in the json
    json                                        an object that goes into `extra`; one of just key, captions, labels and
                                                extra, as `sightline corpus export` writes it, gives back these
    cls                                         a class: a number or a name of classes.csv (id,name) beside the tars;
                                                without that file numbers stay, names are numbered in their order
    mask.png, seg.png                           a label map

Many writers number samples from 0 in each tar, so a sample's key in the corpus is `TAR/KEY`, with the key itself as `key`
in `extra` (unless the json has one); a sample of our own export keeps the key in its json. So a key is a function of its
tar alone, and another tar beside it changes none.

Listing passes once over every tar. An image is then read by its offset; a compressed tar is unpacked once per block. A tar
that breaks off is an error row with its name, and its samples before the break are kept. A sample that makes no sense (bad JSON,
a caption that is no text, two members of one name) is one error row; a member of no sample is a row `TAR#MEMBER@START+BYTES`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import IO, Any, ClassVar

from braceexpand import braceexpand

from sightline.pipelines.corpus.schema import canonical_json
from sightline.pipelines.ingest.sources.files import (
    class_id,
    class_list,
    is_sidecar_file,
    label_ids,
    picture_endings,
    read_class_list,
)
from sightline.pipelines.ingest.sources.item import Item, ItemError, Verdict, distinct, filtered, is_utf8, printable, wrong
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
    """The members of one key in one tar, by lower-case extension; and those that came when there was one of their name."""

    tar: str
    key: str
    members: dict[str, Member] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        return f"{self.tar}/{self.key}"


@dataclass(frozen=True)
class Facts:
    """What the texts of a sample say, or what is wrong with them."""

    sample: Sample
    key: str
    captions: tuple[str, ...] = ()
    labels: tuple[str | int, ...] = ()
    extra: str = "{}"
    verdict: Verdict | None = None


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
        samples = ((facts.sample.place, item_of(facts, ids)) for facts in self._facts)
        yield from distinct(chain(samples, ((item.key, item) for item in self._listed[1])))

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
                reference = printable(reference_to(tar, member))
                others.append(Item(reference, reference, member.nbytes, verdict=verdict, block=tar))
                continue
            sample = samples.setdefault(key, Sample(tar, key))
            if extension in sample.members:
                sample.again.append(member.name)
            else:
                sample.members[extension] = member
        if broken:
            others.append(Item(tar, tar, None, verdict=wrong("torn", f"{broken}; {len(members)} members before that were read")))
        return list(samples.values()), others


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


def item_of(facts: Facts, ids: dict[str | int, int]) -> Item:
    """The item that a sample makes; `ids` by label."""
    sample = facts.sample
    images = [member for extension, member in sample.members.items() if extension in picture_endings()]
    masks = [member for extension, member in sample.members.items() if extension in MASKS]
    return Item(
        key=facts.key,
        image=reference_to(sample.tar, images[0]) if images else sample.place,
        nbytes=images[0].nbytes if images else None,
        captions=facts.captions,
        labels=tuple(class_id(label, ids, sample.place) for label in facts.labels),
        mask=reference_to(sample.tar, masks[0]) if masks else None,
        mask_nbytes=masks[0].nbytes if masks else None,
        extra=facts.extra,
        verdict=facts.verdict or verdict_on(sample, len(images), len(masks)),
        block=sample.tar,
    )


def verdict_on(sample: Sample, images: int, masks: int) -> Verdict | None:
    have = ", ".join(sample.members)
    if sample.again:
        return wrong("occurs_twice", f"{sample.again[0]!r} occurs twice in {sample.tar}; give each sample its own key")
    if not images:
        endings = [extension for extension in sample.members if extension.rpartition(".")[2] in picture_endings()]
        dots = f"; a sample's name ends at its first dot, and {endings[0]!r} follows it here: rename it" if endings else ""
        return wrong("no_image", f"the sample has {have} and no image ({', '.join(picture_endings())}){dots}")
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
        ItemError: it is not UTF-8.
    """
    member = sample.members.get(extension)
    if member is None:
        return None
    assert member.content is not None
    try:
        return member.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ItemError("text_not_utf8", f"{extension} is not UTF-8 (byte {error.start}); write text as UTF-8") from None


def json_of(sample: Sample, extension: str) -> Any:
    text = text_of(sample, extension)
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ItemError("no_json", f"{extension} is no JSON ({error}); correct it") from None
    if extension == "json" and not isinstance(value, dict):
        raise ItemError("no_json", "json is no JSON object; write {...}")
    return value


def facts_of(sample: Sample) -> Facts:
    """What the texts of a sample say. What is wrong there costs this sample alone."""
    key = sample.place
    try:
        about: dict[str, Any] = json_of(sample, "json") or {}
        own = about.keys() == OWN and isinstance(about["key"], str) and isinstance(about["extra"], dict)
        key = about["key"] if own else key
        captions, labels, extra = own_facts(about) if own else foreign_facts(sample, about)
        if not all(is_utf8(label) for label in labels if isinstance(label, str)):
            raise ItemError("text_not_utf8", "a label has a lone surrogate, which is no Unicode text; correct it")
        return Facts(sample, key, captions, labels, canonical_json(extra))
    except ItemError as fault:
        return Facts(sample, key, verdict=fault.verdict)
    except (ValueError, RecursionError) as error:  # of canonical_json
        return Facts(sample, key, verdict=wrong("no_json", f"json has a value without a JSON form ({error}); correct it"))


def own_facts(about: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str | int, ...], dict[str, Any]]:
    """Captions, labels and extra from the json of our own export."""
    labels = about["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) or is_id(label) for label in labels):
        raise ItemError("bad_labels", f"json has the labels {labels!r:.100}; give a list of whole numbers from 0, or of names")
    return checked(about["captions"], empty=True), tuple(labels), about["extra"]


def is_id(label: Any) -> bool:
    """Whether a label may be a class's id: what a row can hold, and no truth value, which Python takes for a number."""
    return isinstance(label, int) and not isinstance(label, bool) and 0 <= label < 2**31


def foreign_facts(sample: Sample, about: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str | int, ...], dict[str, Any]]:
    """Captions, labels and extra as other writers have them."""
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
    extra = {"key": sample.key} | {name: entry for name, entry in about.items() if name != used}
    return checked(value), (cls,) if cls else (), extra


def checked(value: Any, *, empty: bool = False) -> tuple[str, ...]:
    """Captions as they stand in a text or in JSON; empty ones are none.

    Raises:
        ItemError: they are no text.
    """
    values = value if isinstance(value, list) else [] if value is None else [value]
    for caption in values:
        if not isinstance(caption, str):
            raise ItemError("no_text", f"the caption {caption!r:.100} is no text; captions are a text or a list of texts")
    return tuple(caption for caption in values if caption or empty)
