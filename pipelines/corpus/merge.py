"""Merge: one corpus of the rows of several, in their order, without reading an image.

Shards, their digests and the pages that list them are taken over as they are, so the root follows from the inputs' pages
and the fingerprint is the sum of theirs. Files are hard links where the file system has them, copies within one object
store, and copies otherwise. A file that is there with its size is done: the same merge again goes on.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from shutil import copyfileobj

import pyarrow.parquet as pq

from sightline.pipelines.corpus.commit import Draft, commit
from sightline.pipelines.corpus.forget import Tombstones, read_tombstones, write_tombstones
from sightline.pipelines.corpus.manifest import Manifest, newest, read_manifest, read_shards
from sightline.pipelines.corpus.object_store import ObjectStore
from sightline.pipelines.corpus.plan import config_name, input_name
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.rows import COPY_BYTES
from sightline.pipelines.corpus.store import STAGING, LocalStore, Store, open_store, sync

MARK = f"{STAGING}/merge.json"
COPIERS = 8
Watch = Callable[[int, int], None]


@dataclass(frozen=True)
class Input:
    """One of the corpora that are joined."""

    store: Store
    manifest: Manifest

    def files(self) -> Iterator[str]:
        """All that the merged corpus needs of it; pages and configurations after what they name."""
        for shard in read_shards(self.store, self.manifest.pages):
            yield from (name for name, _ in shard.files())
        for plan in self.manifest.plan_ids:
            yield from (input_name(plan), config_name(plan))
        yield from (page.file for page in self.manifest.pages)


def merge(dest: str, sources: Sequence[str], progress: Watch | None = None) -> Manifest:
    """Write the corpus that has the rows of several, or finish it, or find it finished.

    Raises:
        FileNotFoundError: one of them is no corpus.
        ValueError: fewer than two are given, they share a plan or a key, their classes contradict each other, or one has a row that
            another has forgotten.
        FileExistsError: the destination holds something else.
    """
    if len(sources) < 2:
        raise ValueError("a merge needs two corpora or more: DEST A B ...")
    inputs = [Input(store, read_manifest(store)) for store in map(open_store, sources)]
    tombstones = check(inputs)
    store, joined = open_store(dest), [one.manifest.root for one in inputs]
    if (finished := done(store, joined)) is not None:
        store.remove(MARK)  # its writer may have died before this
        return finished
    store.replace(MARK, json.dumps(joined).encode())
    names = [(one.store, name) for one in inputs for name in one.files()]
    watch = progress or (lambda count, total: None)
    with ThreadPoolExecutor(COPIERS) as pool:
        for count, _ in enumerate(pool.map(lambda each: copy(each[0], store, each[1]), names), 1):
            watch(count, len(names))
    classes: list[tuple[int, str]] = united_classes(inputs)
    tomb = write_tombstones(store, tombstones)

    def change(parent: Manifest | None) -> Draft | None:
        if parent is not None:
            done(store, joined)
            return None  # a twin of this merge was here
        pages = [page for one in inputs for page in one.manifest.pages]
        plans = [plan for one in inputs for plan in one.manifest.plans]
        retried = sum((Counter(one.manifest.retried) for one in inputs), Counter[str]())
        return Draft("merge", pages, plans, classes, retried, tomb)

    environment = {"merged": [{"location": one.store.location, "root": one.manifest.root} for one in inputs]}
    manifest = commit(store, change, environment)
    store.remove(MARK)
    return manifest


def done(store: Store, roots: Sequence[str]) -> Manifest | None:
    """This merge as it was finished at the destination; None where nothing or its beginning is there.

    Raises:
        FileExistsError: something else is there.
    """
    manifest = newest(store)
    if manifest is not None and [one["root"] for one in manifest.environment.get("merged", [])] == list(roots):
        return manifest
    begun = store.size(MARK) is not None and json.loads(store.read(MARK)) == list(roots)
    if manifest is not None or (set(store.entries()) - {STAGING} and not begun):
        raise FileExistsError(f"{store.location} holds something else; merge into a fresh folder")
    return None


def check(inputs: Sequence[Input]) -> Tombstones:
    """All tombstones of the inputs, which can be joined.

    Raises:
        ValueError: they cannot.
    """
    owner: dict[str, str] = {}
    for one in inputs:
        for plan in one.manifest.plan_ids:
            if plan in owner:
                where = f"{owner[plan]} and {one.store.location} both have plan {plan}"
                raise ValueError(f"{where}: the same inputs would be in twice; leave one out")
            owner[plan] = one.store.location
    check_keys(inputs)
    united_classes(inputs)
    each = [read_tombstones(one.store, one.manifest.tombstones) for one in inputs]
    for one in inputs:
        for other, gone in zip(inputs, each, strict=True):
            if gone and other is not one:
                check_forgotten(one, other, gone)
    return Tombstones(tuple(pair for tombstones in each for pair in tombstones.sets))


def check_keys(inputs: Sequence[Input]) -> None:
    """No key is an input of two: what became of an input is told by its key."""
    owner: dict[str, str] = {}
    for one in inputs:
        for key in keys(one):
            if owner.setdefault(key, one.store.location) != one.store.location:
                both = f"{owner[key]} and {one.store.location}"
                raise ValueError(f"{both} both have an input with the key {key!r}; ingest one of them with other keys")


def keys(one: Input) -> set[str]:
    """The keys of all inputs of a corpus; a later plan may have taken up some again."""
    found = set[str]()
    for plan in one.manifest.plan_ids:
        with one.store.open(input_name(plan)) as file:
            found.update(pq.read_table(file, columns=["key"])["key"].to_pylist())
    return found


def check_forgotten(one: Input, other: Input, gone: Tombstones) -> None:
    names = Corpus(one.store, one.manifest, read_shards(one.store, one.manifest.pages)).sidecar(["uid", "sha256"])
    for uid, digest in zip(names["uid"].to_pylist(), names["sha256"].to_pylist(), strict=True):
        if uid in gone or digest in gone:
            raise ValueError(
                f"row {uid.hex()} of {one.store.location} was forgotten in {other.store.location}; "
                f"`sightline corpus forget {one.store.location} {uid.hex()}` first"
            )


def united_classes(inputs: Sequence[Input]) -> list[tuple[int, str]]:
    """The classes of all inputs by id.

    Raises:
        ValueError: ids that have two names; labels are ids within the shards, which a merge takes over as they are.
    """
    named: dict[int, tuple[str, str]] = {}
    for one in inputs:
        here = one.store.location
        clashes = [(i, *named[i], name) for i, name in pairs(one.manifest) if i in named and named[i][0] != name]
        if clashes:
            (number, theirs, there, ours), more = clashes[0], len(clashes) - 1
            others = f", and {more:,} more ids have two names" if more else ""
            raise ValueError(
                f"class {number} is {theirs!r} in {there} and {ours!r} in {here}{others}; `sightline corpus export {here} DIR --to "
                "folder`, give DIR/classes.csv the ids that the names have there, and merge what `sightline ingest DIR` makes of it"
            )
        named |= {i: (name, here) for i, name in pairs(one.manifest) if i not in named}
    return sorted((i, name) for i, (name, _) in named.items())


def pairs(manifest: Manifest) -> list[tuple[int, str]]:
    return [(int(entry["id"]), str(entry["name"])) for entry in manifest.classes]


def copy(source: Store, dest: Store, name: str) -> None:
    """A file of one store in another, under its name; nothing where it is already."""
    size = source.size(name)
    if size is None:
        raise FileNotFoundError(
            f"{source.location} is incomplete: {name} is missing; see `sightline corpus verify {source.location}`"
        )
    if dest.size(name) == size:
        return
    if isinstance(source, LocalStore) and isinstance(dest, LocalStore) and linked(source, dest, name):
        return
    if isinstance(source, ObjectStore) and isinstance(dest, ObjectStore) and dest.take(source, name):
        return
    with dest.temporary() as temporary:
        with source.open(name) as reader, temporary.open("wb") as writer:
            copyfileobj(reader, writer, COPY_BYTES)
        dest.publish(temporary, name)


def linked(source: LocalStore, dest: LocalStore, name: str) -> bool:
    """Make a hard link; False where the two lie on different file systems, or theirs has none."""
    path = dest.path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.path(name), path)
    except OSError:  # EXDEV, EPERM, EMLINK, or a file of another size is there: a copy does, or says what is wrong
        return False
    sync(path.parent)
    return True
