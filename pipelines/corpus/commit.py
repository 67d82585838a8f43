"""Commit: a corpus changes at the moment when a generation is created that names every shard.

Before that, every named file must have its size, and in each shard rows + rejected + forgotten must equal the plan's
rows: what runs the shards may drop some silently, this does not. Creating a generation lets one of several writers
win; whoever loses makes its change again on top of the winner's, or refuses if it was planned on what was there before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from sightline.pipelines.corpus.digests import add_fingerprints, fingerprint_hex, page_digest, root_digest
from sightline.pipelines.corpus.manifest import (
    CURRENT,
    PAGE_SHARDS,
    Manifest,
    Page,
    PlanFacts,
    encode,
    generation_name,
    newest,
    read_shards,
)
from sightline.pipelines.corpus.plan import Plan
from sightline.pipelines.corpus.schema import FORMAT
from sightline.pipelines.corpus.shards import ShardRecord
from sightline.pipelines.corpus.store import STAGING, Store


@dataclass(frozen=True)
class Draft:
    """What a change wants the next generation to be.

    Attributes:
        change: as in `Manifest`.
        pages: all of the generation's, those of its parent that stay as they are among them.
        plans: all plans whose rows the pages hold.
        classes: ids and names.
        retried: as in `Manifest`.
        tombstones: as in `Manifest`.
    """

    change: str
    pages: Sequence[Page]
    plans: Sequence[PlanFacts]
    classes: Sequence[tuple[int, str]]
    retried: Mapping[str, int]
    tombstones: str | None = None


Change = Callable[[Manifest | None], Draft | None]


def commit(store: Store, change: Change, environment: Mapping[str, Any]) -> Manifest:
    """Create the next generation; a change that returns None finds itself committed already.

    Raises:
        AssertionError: rows or files were lost; nothing was committed.
    """
    while True:
        parent = newest(store)
        draft = change(parent)
        if draft is None:
            assert parent is not None
            store.replace(CURRENT, encode(parent))  # its writer may have died before this
            return parent
        manifest = make_manifest(store, draft, parent, environment)
        if store.create(generation_name(manifest.generation), encode(manifest)):
            store.replace(CURRENT, encode(manifest))
            return manifest


def make_manifest(store: Store, draft: Draft, parent: Manifest | None, environment: Mapping[str, Any]) -> Manifest:
    """Add up the pages' shards, check that nothing was lost, and write it all down."""
    codes: Counter[str] = Counter()
    planned: Counter[str] = Counter()
    rows = nbytes = forgotten = prints = 0
    for shard in read_shards(store, draft.pages):
        assert shard.rows + shard.rejected + shard.forgotten == shard.planned, f"{shard} does not add up"
        assert sum(shard.codes.values()) == shard.rejected, f"{shard.file}: {shard.codes} of {shard.rejected}"
        codes.update(shard.codes)
        planned[shard.plan] += shard.planned
        rows, nbytes, forgotten = rows + shard.rows, nbytes + shard.bytes, forgotten + shard.forgotten
        prints = add_fingerprints((prints, int(shard.fingerprint, 16)))
    expected = {plan.id: plan.rows for plan in draft.plans}
    assert dict(planned) == expected, f"the shards account for {dict(planned)} inputs, the plans have {expected}"
    codes.subtract(draft.retried)
    assert all(count >= 0 for count in codes.values()), f"more was retried than rejected: {dict(draft.retried)}"
    rejected = sum(codes.values())
    return Manifest(
        format=FORMAT,
        generation=1 if parent is None else parent.generation + 1,
        parent=None if parent is None else parent.generation,
        change=draft.change,
        plans=list(draft.plans),
        rows=rows,
        bytes=nbytes,
        seen=rows + rejected + forgotten,
        rejected=rejected,
        forgotten=forgotten,
        codes={code: count for code, count in sorted(codes.items()) if count},
        retried=dict(sorted(draft.retried.items())),
        root=root_digest(bytes.fromhex(page.digest) for page in draft.pages).hex(),
        fingerprint=fingerprint_hex(prints),
        classes=[{"id": number, "name": name} for number, name in sorted(draft.classes)],
        pages=list(draft.pages),
        tombstones=draft.tombstones,
        parent_sha256=None if parent is None else sha256(encode(parent)).hexdigest(),
        environment=dict(environment),
    )


def commit_plan(
    store: Store,
    plan: Plan,
    records: Mapping[int, ShardRecord],
    classes: Sequence[tuple[int, str]],
    environment: Mapping[str, Any],
    *,
    source: str = "",
    change: str = "ingest",
    retried: Mapping[str, int] | None = None,
    onto: int | None = None,
) -> Manifest:
    """Make a plan's shards the corpus's first generation, or the one after `onto` (`append`, `retry`).

    Raises:
        FileExistsError: somebody else committed there meanwhile, and the plan does not know of it.
        AssertionError: shards, rows or files were lost; nothing was committed.
    """
    check_conservation(store, plan, records)
    pages = write_pages(store, [records[index] for index in range(plan.shards)])
    facts = PlanFacts(plan.plan_id, plan.input_digest, plan.config_digest, plan.rows, source)

    def add(parent: Manifest | None) -> Draft | None:
        if parent is None:
            return Draft("ingest", pages, [facts], classes, {})
        if plan.plan_id in parent.plan_ids:
            return None  # a twin of this ingest was here, or this one died right after its commit
        if change == "ingest":
            raise FileExistsError(f"{store.location} holds another corpus by now; ingest into a fresh folder")
        if parent.generation != onto:  # what is new, rejected or forgotten is another matter now
            raise FileExistsError(
                f"{store.location} got generation {parent.generation} meanwhile; the same command again goes on from it"
            )
        return Draft(
            change,
            [*parent.pages, *pages],
            [*parent.plans, facts],
            joined_classes(parent, classes),
            Counter(parent.retried) + Counter(retried or {}),
            parent.tombstones,
        )

    manifest = commit(store, add, environment)
    store.remove_folder(f"{STAGING}/{plan.plan_id}")
    return manifest


def joined_classes(parent: Manifest, classes: Iterable[tuple[int, str]]) -> list[tuple[int, str]]:
    """The classes of a corpus and of what joins it.

    Raises:
        ValueError: one id has two names.
    """
    known = {int(entry["id"]): str(entry["name"]) for entry in parent.classes}
    for number, name in classes:
        if known.setdefault(number, name) != name:
            raise ValueError(
                f"class {number} is {known[number]!r} in the corpus and {name!r} in what joins it; "
                "give both the same ids by a classes.csv, and ingest again"
            )
    return sorted(known.items())


def check_conservation(store: Store, plan: Plan, records: Mapping[int, ShardRecord]) -> None:
    """Every chunk has a record, every record accounts for every row of its chunk, and every file is there."""
    absent = sorted(set(range(plan.shards)) - set(records))
    assert not absent, f"{len(absent)} of {plan.shards} shards were never reported, the first is {absent[0]}"
    assert len(records) == plan.shards, f"{len(records)} shards were reported, the plan has {plan.shards}"
    for index, record in records.items():
        assert (record.plan, record.index) == (plan.plan_id, index), f"a foreign record stands for shard {index}"
        expected = plan.chunk_rows(index)
        assert record.rows + record.rejected == record.planned == expected, f"shard {index}: {record} of {expected} rows"
        assert sum(record.codes.values()) == record.rejected, f"shard {index}: {record.codes} of {record.rejected}"
    missing = store.missing(file for record in records.values() for file in record.files())
    assert missing is None, f"{missing} is not there, or has another size than when it was written"


def write_pages(store: Store, shards: Sequence[ShardRecord]) -> list[Page]:
    """Pages of shard records, in order."""
    return [write_page(store, shards[start : start + PAGE_SHARDS]) for start in range(0, len(shards), PAGE_SHARDS)]


def write_page(store: Store, shards: Sequence[ShardRecord]) -> Page:
    data = json.dumps({"shards": [shard.to_json() for shard in shards]}).encode()
    name = f"manifests/pages/{sha256(data).hexdigest()[:12]}.json"
    store.replace(name, data)
    return Page(
        digest=page_digest(bytes.fromhex(shard.content) for shard in shards).hex(),
        file=name,
        shards=len(shards),
        rows=sum(shard.rows for shard in shards),
        bytes=sum(shard.bytes for shard in shards),
    )
