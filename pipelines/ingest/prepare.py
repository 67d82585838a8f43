"""Everything about an ingest that can go wrong before any work: the source, the destination, the plan. No cluster
needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sightline.pipelines.corpus.manifest import CURRENT, Manifest, read_manifest
from sightline.pipelines.corpus.plan import Plan, make_plan, plan_ids, save_plan
from sightline.pipelines.corpus.store import STAGING, LocalStore, open_store
from sightline.pipelines.ingest.report import IngestOptions, IngestReport
from sightline.pipelines.ingest.sources.detect import open_source
from sightline.pipelines.ingest.sources.item import ITEM_SCHEMA, Source


@dataclass(frozen=True)
class Prepared:
    """An ingest that is ready to run, or was run before.

    Attributes:
        source, store, plan: what, whereto, and in which shards.
        classes: ids and names, for the manifest.
        report: of the finished corpus; None as long as there is work.
    """

    source: Source
    store: LocalStore
    plan: Plan
    classes: list[tuple[int, str]]
    report: IngestReport | None


def prepare(source: str | Path, dest: str | Path, options: IngestOptions) -> Prepared:
    """List the source, and freeze the plan at the destination unless that is done.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: the source is of no known kind, holds nothing, or contradicts itself; or the destination lies in it.
        FileExistsError: the destination holds something else.
    """
    opened, store = open_source(Path(source), options.kind), open_store(dest)
    if store.root.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{dest} lies in the source {source}, and would be input itself; give a folder outside of it")
    classes = opened.classes()
    plan, table = plan_source(opened, classes, options)
    manifest = finished(store, plan)
    if manifest is None and plan.plan_id not in plan_ids(store):
        save_plan(store, plan, table)
    return Prepared(opened, store, plan, classes, None if manifest is None else IngestReport.of(manifest))


def plan_source(source: Source, classes: list[tuple[int, str]], options: IngestOptions) -> tuple[Plan, pa.Table]:
    """The plan over all items of a source. Where the source lies is no part of it."""
    items = [item.to_row() for item in source.items()]
    config = {
        "kind": source.kind,
        "source": source.config(),
        "classes": [[number, name] for number, name in classes],
        "max_pixels": options.max_pixels,
    }
    return make_plan(items, ITEM_SCHEMA, config, seed=options.seed, shard_rows=options.shard_rows)


def finished(store: LocalStore, plan: Plan) -> Manifest | None:
    """The corpus at the destination if it is this plan's; None where nothing is finished.

    Raises:
        FileExistsError: something else is there.
    """
    remedy = "ingest into a fresh folder, or remove that one"
    if store.size(CURRENT) is not None:
        manifest = read_manifest(store)
        if [entry["id"] for entry in manifest.plans] != [plan.plan_id]:
            raise FileExistsError(f"{store.root} holds a corpus of another source or other options; {remedy}")
        return manifest
    if plan_ids(store) not in ([], [plan.plan_id]):
        raise FileExistsError(f"{store.root} holds an unfinished ingest of another source or other options; {remedy}")
    if not plan_ids(store) and not set(store.entries()) <= {STAGING, "plans"}:  # what a begun plan leaves behind
        raise FileExistsError(f"{store.root} holds files that are no corpus; {remedy}")
    return None
