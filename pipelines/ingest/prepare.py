"""Everything about an ingest that can go wrong before any work: the source, the destination, the plan. No cluster
needed.

A corpus begins with one plan over all inputs of a source. More plans may join it: `append` is one over the inputs whose
keys no plan had so far (`earlier.py`), `retry` one over inputs that were rejected. Each becomes a generation when it is
done, and until then the corpus is as it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from sightline.fetch.result import FetchOptions
from sightline.pipelines.corpus.manifest import Manifest, newest, read_manifest
from sightline.pipelines.corpus.plan import Plan, make_plan, plan_config, plan_ids, save_plan
from sightline.pipelines.corpus.schema import FILTER, STAGES
from sightline.pipelines.corpus.store import STAGING, LocalStore, Store, open_store
from sightline.pipelines.ingest.earlier import rejected_keys, unseen
from sightline.pipelines.ingest.report import IngestOptions, IngestReport
from sightline.pipelines.ingest.resize import Resize
from sightline.pipelines.ingest.sources.detect import open_source
from sightline.pipelines.ingest.sources.item import ITEM_SCHEMA, Item, Source, is_utf8, printable, sound
from sightline.pipelines.ingest.sources.url_list import UrlList


@dataclass(frozen=True)
class Prepared:
    """An ingest that is ready to run, or was run before.

    Attributes:
        source, location, store, plan: what, from where, whereto, and in which shards.
        classes: ids and names, for the manifest.
        options: as given; what decides bytes is in the plan's configuration too.
        change: what the generation will be: `ingest`, `append` or `retry`.
        retried: the rejected inputs that a retry takes up, by stage and code.
        onto: the generation that an append or a retry was planned on.
        report: of the finished corpus; None as long as there is work.
    """

    source: Source
    location: str
    store: Store
    plan: Plan
    classes: list[tuple[int, str]]
    options: IngestOptions
    change: str = "ingest"
    retried: Mapping[str, int] = field(default_factory=dict)
    onto: int | None = None
    report: IngestReport | None = None


def prepare(source: str | Path, dest: str | Path, options: IngestOptions) -> Prepared:
    """List the source, and freeze the plan at the destination unless that is done.

    Raises:
        FileNotFoundError: there is no source.
        ValueError: the source is of no known kind, holds nothing, or contradicts itself; or the destination lies in it.
        FileExistsError: the destination holds something else.
    """
    opened, store = open_both(source, dest, options)
    classes = opened.classes()
    plan, table = plan_items(opened, map(sound, opened.items()), classes, options)
    manifest = finished(store, plan)
    if manifest is None and plan.plan_id not in plan_ids(store):
        write_plan(store, plan, table)
    report = None if manifest is None else IngestReport.of(manifest)
    return Prepared(opened, absolute(source), store, plan, classes, options, report=report)


def prepare_append(source: str | Path, dest: str | Path, options: IngestOptions) -> Prepared | IngestReport:
    """Plan the inputs of a source whose keys the corpus has never seen; where there are none, report on it as it is.

    Raises:
        As `prepare`, FileNotFoundError where there is no corpus yet, and ValueError for options that it was not made with, for a
        known key with another content, or where what it has would now go by other keys: its rows would be in twice.
    """
    opened, store = open_both(source, dest, options)
    manifest = read_manifest(store)
    options = as_before(store, manifest, options)
    check_keys(store, manifest, opened)
    new = unseen(store, manifest, opened, absolute(source), [*map(sound, opened.items())], options)
    if not new:
        return IngestReport.of(manifest)
    return further(opened, source, store, manifest, new, options, "append", {})


def prepare_retry(
    dest: str | Path, source: str | None, codes: Sequence[str], fetch: FetchOptions | None = None
) -> Prepared | IngestReport:
    """Plan the inputs that were rejected (by some `stage/code`, or all errors), as the source lists them now; where there are none,
    report on the corpus as it is.

    Raises:
        As `prepare`, FileNotFoundError where there is no corpus, and ValueError for what is no code at all.
    """
    store = open_store(dest)
    manifest = read_manifest(store)
    rejected = rejected_keys(store, manifest)
    if wrong := [code for code in codes if code.partition("/")[0] not in STAGES or not code.partition("/")[2]]:
        stages = f"STAGE/CODE, where STAGE is one of {', '.join(STAGES)}"
        raise ValueError(f"{wrong[0]!r} is no code; write {stages}; there are {', '.join(manifest.codes) or 'no errors'}")
    wanted = {
        key: (plan, code)
        for key, (plan, code) in rejected.items()
        if (code in codes if codes else not code.startswith(f"{FILTER}/"))
    }
    if not wanted:
        return IngestReport.of(manifest)
    source, kind, keys = where_from(store, manifest, wanted, source)
    options = as_before(store, manifest, IngestOptions(kind=kind, fetch=fetch or FetchOptions()))
    opened, _ = open_both(source, dest, options)
    check_keys(store, manifest, opened)
    items = [item for item in map(sound, opened.items()) if item.key in keys]
    if not items:
        raise ValueError(f"{source} has none of the {len(keys):,} inputs that were rejected; name where they are by --source")
    retried = Counter(wanted[item.key][1] for item in items)
    return further(opened, source, store, manifest, items, options, "retry", retried)


def where_from(
    store: Store, manifest: Manifest, wanted: Mapping[str, tuple[str, str]], source: str | None
) -> tuple[str, str, set[str]]:
    """The source and the kind of source that rejected inputs come from, and their keys; one source at a time.

    Raises:
        ValueError: there are several, or none is known (or a corpus of strangers would send us to the network).
    """
    plans = {plan.id: plan for plan in manifest.plans if plan.id in {plan_id for plan_id, _ in wanted.values()}}
    same = {plan_id for plan_id, plan in plans.items() if source is not None and plan.source == absolute(source)}
    chosen = same or set(plans)
    places = sorted({(plans[plan_id].source, str(plan_config(store, plan_id)["kind"])) for plan_id in chosen})
    if len(places) > 1:
        raise ValueError(f"the rejected inputs come from {' and '.join(place for place, _ in places)}; choose one by --source")
    place, kind = places[0]
    if source is None and (not place or place.startswith(("http://", "https://"))):
        raise ValueError(f"{store.location} says that its inputs were at {place or 'no place'}; give --source")
    return source or place, kind, {key for key, (plan_id, _) in wanted.items() if plan_id in chosen}


def check_keys(store: Store, manifest: Manifest, opened: Source) -> None:
    """Whether a source makes its keys of what those of its kind made them of that are in the corpus.

    Raises:
        ValueError: it does not, so that no row of theirs would be known again.
    """
    now = opened.config().get("key")
    for plan in manifest.plans:
        config = plan_config(store, plan.id)
        if config["kind"] == opened.kind and (before := config["source"].get("key")) != now:
            raise ValueError(
                f"{store.location} has the keys of such rows from {before}, and this source has them from {now}, so rows would be "
                "in twice; ingest all into a fresh folder, or what is new into one of its own and use `sightline corpus merge`"
            )


def as_before(store: Store, manifest: Manifest, options: IngestOptions) -> IngestOptions:
    """The options that decide bytes, as the corpus began with them.

    Raises:
        ValueError: others were asked for.
    """
    config = plan_config(store, manifest.plans[0].id)
    resize = Resize.from_config(config["resize"])
    before = replace(options, resize=resize, max_pixels=config["max_pixels"], seed=config["seed"])
    asked, default = (options.resize, options.max_pixels, options.seed), IngestOptions()
    usual = (default.resize, default.max_pixels, default.seed)
    kept = (before.resize, before.max_pixels, before.seed)
    if any(mine not in choices for mine, *choices in zip(asked, usual, kept, strict=True)):
        raise ValueError(f"{store.location} was made with other options, and what joins it is made alike; leave them away")
    return before


def further(
    opened: Source,
    source: str | Path,
    store: Store,
    manifest: Manifest,
    items: Iterable[Item],
    options: IngestOptions,
    change: str,
    retried: Mapping[str, int],
) -> Prepared:
    """A plan that is to join a corpus, frozen there."""
    classes = opened.classes()
    config = {"retry": manifest.generation} if change == "retry" else {}
    stones = {} if manifest.tombstones is None else {"tombstones": manifest.tombstones}
    plan, table = plan_items(opened, items, classes, options, config | stones)
    if plan.plan_id not in plan_ids(store):
        write_plan(store, plan, table)
    return Prepared(opened, absolute(source), store, plan, classes, options, change, retried, manifest.generation)


def open_both(source: str | Path, dest: str | Path, options: IngestOptions) -> tuple[Source, Store]:
    opened, store = open_source(source, options.kind), open_store(dest)
    if isinstance(store, LocalStore) and store.root.is_file():
        raise FileExistsError(f"{dest} is a file; give a folder")
    inside = isinstance(store, LocalStore) and store.root.resolve().is_relative_to(Path(source).expanduser().resolve())
    if inside and "://" not in str(source):
        raise ValueError(f"{dest} lies in the source {source}, and would be input itself; give a folder outside of it")
    return opened, store


def write_plan(store: Store, plan: Plan, table: pa.Table) -> None:
    """Freeze a plan at the destination, which is the first thing that is written there.

    Raises:
        OSError: nothing can be written there; the message says where and why.
    """
    try:
        save_plan(store, plan, table)
    except OSError as error:
        if error.strerror is None:
            raise  # a sentence already
        why = f"cannot write {error.filename or store.location}: {error.strerror}"
        raise type(error)(f"{why}; mend that, or give another DEST") from None


def absolute(source: str | Path) -> str:
    """A source's place as it reads from anywhere."""
    return str(source) if "://" in str(source) else str(Path(source).expanduser().absolute())


def plan_items(
    source: Source,
    items: Iterable[Item],
    classes: list[tuple[int, str]],
    options: IngestOptions,
    config: Mapping[str, Any] | None = None,
) -> tuple[Plan, pa.Table]:
    """The plan over items of a source. Where the source lies is no part of it.

    Raises:
        ValueError: as `make_plan`, or a class's name is no UTF-8.
    """
    if odd := [name for _, name in classes if not is_utf8(name)]:
        raise ValueError(f"the class {printable(odd[0])!r} has a name that is not UTF-8; rename it")
    whole = {
        "kind": source.kind,
        "source": source.config(),
        "classes": [[number, name] for number, name in classes],
        "max_pixels": options.max_pixels,
        "resize": options.resize.config(),
        **({"fetch": options.fetch.config()} if isinstance(source, UrlList) else {}),
        **(config or {}),
    }
    rows = [item.to_row() for item in items]
    return make_plan(rows, ITEM_SCHEMA, whole, seed=options.seed, shard_rows=options.shard_rows)


def finished(store: Store, plan: Plan) -> Manifest | None:
    """The corpus at the destination if it is this plan's; None where nothing is finished.

    Raises:
        FileExistsError: something else is there.
    """
    remedy = "ingest into a fresh folder, remove that one, or add to it with --append"
    manifest = newest(store)
    if manifest is not None:
        if plan.plan_id != manifest.plans[0].id:
            raise FileExistsError(f"{store.location} holds a corpus of another source or other options; {remedy}")
        return manifest
    begun = plan_ids(store)
    if begun not in ([], [plan.plan_id]):
        raise FileExistsError(f"{store.location} holds an unfinished ingest of another source or other options; {remedy}")
    if not begun and not set(store.entries()) <= {STAGING, "plans"}:  # what a begun plan leaves behind
        raise FileExistsError(f"{store.location} holds files that are no corpus; ingest into a fresh folder, or remove that one")
    return None
