"""All generations of a corpus, read without trusting them: for those who check it (`verify`) or clean it up (`gc`).

A generation is live unless it was revoked. Each names its parent by the sha256 of its bytes, and `manifest.json` repeats
the current one, so that a changed byte in any of them shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from hashlib import sha256

from sightline.pipelines.corpus.commit import Draft, make_manifest
from sightline.pipelines.corpus.digests import page_digest
from sightline.pipelines.corpus.manifest import (
    CURRENT,
    Manifest,
    OtherFormatError,
    Page,
    decode,
    encode,
    generation_name,
    read_manifest,
    read_shards,
    revoked_name,
)
from sightline.pipelines.corpus.shards import ShardRecord
from sightline.pipelines.corpus.store import Store

GENERATION = re.compile(r"manifests/gen-(\d+)\.json")
Problem = tuple[str, str]  # a file, and what is wrong with it


@dataclass(frozen=True)
class Generation:
    """A manifest, and the records of those of its pages that can be read."""

    manifest: Manifest
    shards: tuple[ShardRecord, ...]


@dataclass(frozen=True)
class History:
    """The live generations, the current one first; the revoked; and what is wrong with any of their files."""

    current: Manifest
    live: tuple[Generation, ...]
    revoked: tuple[Manifest, ...]
    problems: tuple[Problem, ...]


def read_history(store: Store) -> History:
    """Every generation that can be read.

    Raises:
        FileNotFoundError: there is no corpus.
        ValueError: no manifest of it can be read, or one has another format.
    """
    problems: list[Problem] = []
    files = {int(found[1]): name for name in store.names("manifests") if (found := GENERATION.fullmatch(name))}
    if not files:
        read_manifest(store)  # says what is there instead
        raise ValueError(f"{store.location} has a {CURRENT} and no generation; restore its manifests")
    data = {number: store.read(name) for number, name in sorted(files.items())}
    manifests: dict[int, Manifest] = {}
    for number, raw in data.items():
        try:
            manifests[number] = decode(raw, f"{store.location}/{files[number]}")
            if encode(manifests[number]) != raw:
                problems.append((files[number], "is not as it was written"))
        except ValueError as error:
            if isinstance(error, OtherFormatError) and raw == read_current(store):
                raise  # two files say so: it is no damage
            problems.append((files[number], "cannot be read"))
            if (copy := copy_of(store, number)) is not None:
                manifests[number] = copy
    if not manifests:
        raise ValueError(f"no manifest of {store.location} can be read; restore one from a copy")
    if (current := read_current(store)) is None:
        problems.append((CURRENT, "is missing"))
    elif current not in data.values():  # an older one is right too: its writer died before it could say so
        last = files[max(files)]
        whole = (last, "cannot be read") not in problems and (last, "is not as it was written") not in problems
        remedy = f"; copy {last} over {CURRENT}" if whole else ", nor is that one whole; restore one of the two from a copy"
        problems.append((CURRENT, f"is no copy of {last}{remedy}"))
    problems += [(generation_name(number), "is missing") for number in range(1, max(data)) if number not in data]
    for number, manifest in manifests.items():
        parent = data.get(number - 1)
        if parent is not None and manifest.parent_sha256 != sha256(parent).hexdigest():
            problems.append((files[number - 1], f"is not the parent that {files[number]} was made of"))
    live, revoked = [], []
    for number, manifest in sorted(manifests.items(), reverse=True):
        if number != max(manifests) and store.size(revoked_name(number)) is not None:
            revoked.append(manifest)
            continue
        shards, wrong = check_generation(store, files[number], manifest, manifests.get(number - 1))
        live.append(Generation(manifest, shards))
        problems += [problem for problem in wrong if problem not in problems]
    return History(manifests[max(manifests)], tuple(live), tuple(revoked), tuple(problems))


def ancestors(store: Store, manifest: Manifest) -> Iterator[Manifest]:
    """A generation, its parent, and so on to the first.

    Raises:
        ValueError: a file holds another generation than its name says, so that this might never end.
    """
    yield manifest
    while (number := manifest.parent) is not None:
        name = generation_name(number)
        manifest = decode(store.read(name), f"{store.location}/{name}")
        if manifest.generation != number:
            raise ValueError(f"{store.location}/{name} is damaged; see `sightline corpus verify {store.location}`")
        yield manifest


def read_current(store: Store) -> bytes | None:
    """What `manifest.json` holds; None where there is none."""
    try:
        return store.read(CURRENT)
    except FileNotFoundError:
        return None


def copy_of(store: Store, number: int) -> Manifest | None:
    """The generation as `manifest.json` has it."""
    try:
        copy = decode(read_current(store) or b"", CURRENT)
    except ValueError:
        return None
    return copy if copy.generation == number else None


def check_generation(
    store: Store, name: str, manifest: Manifest, parent: Manifest | None
) -> tuple[tuple[ShardRecord, ...], list[Problem]]:
    """The shards that a manifest's pages list, and what is wrong with the pages and with its sums."""
    shards: list[ShardRecord] = []
    problems: list[Problem] = []
    for page in manifest.pages:
        listed = read_page(store, page)
        if isinstance(listed, str):
            problems.append((page.file, listed))
        else:
            shards += listed
    if problems:
        return tuple(shards), problems
    try:
        classes = [(int(entry["id"]), str(entry["name"])) for entry in manifest.classes]
        draft = Draft(manifest.change, manifest.pages, manifest.plans, classes, manifest.retried, manifest.tombstones)
        again = make_manifest(store, draft, parent, manifest.environment)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        return tuple(shards), [(name, f"does not add up: {error}")]
    if parent is None:  # it cannot be read, which was said already
        again = replace(again, generation=manifest.generation, parent=manifest.parent, parent_sha256=manifest.parent_sha256)
    for field in fields(Manifest):
        said, found = getattr(manifest, field.name), getattr(again, field.name)
        if said != found and field.name != "parent_sha256":
            problems.append((name, f"says {field.name} {str(said)[:70]}, and its shards make it {str(found)[:70]}"))
    return tuple(shards), problems


def read_page(store: Store, page: Page) -> list[ShardRecord] | str:
    """A page's records, or what is wrong with it."""
    try:
        data = store.read(page.file)
    except (OSError, ValueError):  # a damaged name may be none at all
        return "is missing"
    if page.file != f"manifests/pages/{sha256(data).hexdigest()[:12]}.json":
        return "is not what was committed"
    shards = read_shards(store, [page])
    sums = (len(shards), sum(shard.rows for shard in shards), sum(shard.bytes for shard in shards))
    if page_digest(bytes.fromhex(shard.content) for shard in shards).hex() != page.digest or sums != (
        page.shards,
        page.rows,
        page.bytes,
    ):
        return "lists other shards than its manifest says"
    return shards
