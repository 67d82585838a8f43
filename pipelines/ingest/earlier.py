"""What a corpus had so far: its plans' inputs by key, what became of them, and which inputs of a source are new to it.

A key names one input. Of two inputs with one key the second cannot join, and to take it for the first would lose it
without a word, so an append knows an input again only where its content is the same, and refuses it where it is not:

    the listing says the same    captions, labels (by name), mask and no mask, extra, sizes as far as both are known
    and it lies where it lay     the same folder or address, and there the same file: nothing is read
    or its image is the same     elsewhere (another folder, a tar that was packed again) the image is read and becomes a row,
                                 whose bytes are compared with the row that there is, or it is rejected for the same reason

So a file that changed in its place, and kept its size, counts as the one that was there, as does what a URL leads to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from sightline.pipelines.corpus.forget import read_tombstones
from sightline.pipelines.corpus.manifest import Manifest, read_shards
from sightline.pipelines.corpus.plan import input_name, plan_config
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.schema import FILTER, Rejected
from sightline.pipelines.corpus.store import Store
from sightline.pipelines.ingest.report import IngestOptions
from sightline.pipelines.ingest.sources.item import Item, Source
from sightline.pipelines.ingest.sources.other_corpus import OtherCorpus
from sightline.pipelines.ingest.sources.url_list import UrlList
from sightline.pipelines.ingest.transform import transform

READERS = 8  # inputs read at a time: waiting for a network overlaps
BATCH = 4_096
WHOLE = (UrlList.kind, OtherCorpus.kind)  # kinds whose references say all: an address, or a shard that is named by its content


@dataclass(frozen=True)
class Input:
    """An input as far as it is compared.

    Attributes:
        said: a digest of what the listing says of it; empty where the plan's row was blanked.
        nbytes, mask_nbytes: None where they are not known.
        lies: a digest of the place, the reference and the container.
        verdict: `stage/code` of the listing's; empty where there is none.
    """

    said: bytes
    nbytes: int | None
    mask_nbytes: int | None
    lies: bytes
    verdict: str


def unseen(
    store: Store, manifest: Manifest, opened: Source, location: str, items: Sequence[Item], options: IngestOptions
) -> list[Item]:
    """The inputs of a source, which lies at `location`, whose keys no plan of the corpus had.

    Raises:
        ValueError: one of the others has another content than what is there, or a file that is there goes by another key now: its
            row would be in twice.
        ConnectionError: the source cannot be reached.
    """
    here = home(opened.kind, location)
    before, files = inputs(store, manifest, here)
    names = dict(opened.classes())
    new, doubtful = [], []
    for item in items:
        earlier = before.get(item.key)
        if earlier is None:
            if item.nbytes is not None and (key := files.get((item.image, item.nbytes))) is not None:
                raise ValueError(
                    f"{item.image} is in {store.location} under the key {key!r}, and the source now calls it {item.key!r}; "
                    "ingest what is new from a place of its own, or all into a fresh folder"
                )
            new.append(item)
        elif (known := is_known(earlier, of_item(item, opened.kind, here, names), opened)) is None:
            doubtful.append(item)
        elif not known:
            raise other_content(store, manifest, item, location)
    check_contents(store, manifest, opened, location, doubtful, options)
    return new


def is_known(before: Input, now: Input, opened: Source) -> bool | None:
    """Whether two inputs of one key are the same; None where only the image can tell."""
    if not before.said:
        return True  # it was forgotten for good, and stays out whatever it says now
    if before.verdict or now.verdict:
        return before.verdict.partition("/")[0] == now.verdict.partition("/")[0] == FILTER or before.verdict == now.verdict
    sizes = ((before.nbytes, now.nbytes), (before.mask_nbytes, now.mask_nbytes))
    if before.said != now.said or any(a is not None and b is not None and a != b for a, b in sizes):
        return False
    if before.lies == now.lies:
        return True
    return False if isinstance(opened, UrlList) else None


def inputs(store: Store, manifest: Manifest, here: str) -> tuple[dict[str, Input], dict[tuple[str, int], str]]:
    """All inputs of a corpus by key, as the last plan that had them has them; the keys of the files of `here` by name and size."""
    names = {int(entry["id"]): str(entry["name"]) for entry in manifest.classes}
    found: dict[str, Input] = {}
    files: dict[tuple[str, int], str] = {}
    for plan in manifest.plans:
        kind = str(plan_config(store, plan.id).get("kind", ""))
        there = home(kind, plan.source)
        with store.open(input_name(plan.id)) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    item = Item.from_row(row)
                    found[item.key] = of_item(item, kind, there, names)
                    if item.nbytes is not None and there == here:
                        files[item.image, item.nbytes] = item.key
    return found, files


def of_item(item: Item, kind: str, place: str, names: Mapping[int, str]) -> Input:
    if not item.image and item.verdict is None:
        return Input(b"", None, None, b"", "")  # `corpus gc --purge` blanked it
    labels = [names.get(label, label) for label in item.labels]  # the same class may have another id in another source
    return Input(
        said=digest(item.captions, labels, item.extra, item.mask is not None),
        nbytes=item.nbytes,
        mask_nbytes=item.mask_nbytes,
        lies=digest(kind, place, item.image, item.mask, item.block),
        verdict="" if item.verdict is None else f"{item.verdict.stage}/{item.verdict.code}",
    )


def digest(*values: Any) -> bytes:
    return blake2b(repr(values).encode(), digest_size=16).digest()


def home(kind: str, location: str) -> str:
    """The folder that references of a source are relative to, as far as this machine can tell without asking a network."""
    if kind in WHOLE:
        return ""
    local = "://" not in location
    if "{" in location and not (local and Path(location).exists()):
        return location.partition("{")[0].rpartition("/")[0]  # a brace range
    return str(Path(location).parent) if local and Path(location).is_file() else location.rstrip("/")


def check_contents(
    store: Store, manifest: Manifest, opened: Source, location: str, items: Sequence[Item], options: IngestOptions
) -> None:
    """Whether inputs become the rows, or fail for the reasons, that the corpus has under their keys.

    Raises:
        ValueError: one does not.
    """
    if not items:
        return
    corpus = Corpus(store, manifest, read_shards(store, manifest.pages))
    listed = corpus.sidecar(["key", "sha256"])
    wanted = {item.key for item in items}
    rows = {key: number for number, key in enumerate(listed["key"].to_pylist()) if key in wanted}
    rejected, tombstones = rejected_keys(store, manifest), read_tombstones(store, manifest.tombstones)

    def same(item: Item) -> bool:
        outcome = transform(item, 0, opened.read, max_pixels=options.max_pixels, resize=options.resize)
        if isinstance(outcome, Rejected):
            return rejected.get(item.key, ("", ""))[1] == f"{outcome.stage}/{outcome.code}"
        if (number := rows.get(item.key)) is None:
            return outcome.uid in tombstones or outcome.sha256 in tombstones
        masks = (outcome.mask, corpus.row(number).mask if outcome.mask is not None else None)
        return bool(listed["sha256"][number].as_py() == outcome.sha256) and masks[0] == masks[1]

    ordered = sorted(items, key=lambda item: (item.block or "", item.key))  # those of one container follow each other
    with ThreadPoolExecutor(READERS) as pool:
        for item, is_same in zip(ordered, pool.map(same, ordered), strict=True):
            if not is_same:
                pool.shutdown(wait=False, cancel_futures=True)
                raise other_content(store, manifest, item, location)


def other_content(store: Store, manifest: Manifest, item: Item, location: str) -> ValueError:
    """What to say of an input whose key is taken."""
    code = rejected_keys(store, manifest).get(item.key, ("", ""))[1]
    was = f"the input {item.key!r}, rejected as {code}" if code else f"the input {item.key!r}"
    retry = (
        f"if it was mended, `sightline corpus retry {store.location} --source {location}` first; if it is another, " if code else ""
    )
    return ValueError(
        f"{store.location} has {was}, and that of {location} has another content; {retry}give it another key (another name of its "
        "tar, file or folder, or a column `key`), or ingest all into a fresh folder"
    )


def plan_keys(store: Store, plan_id: str) -> list[str]:
    with store.open(input_name(plan_id)) as file:
        keys: list[str] = pq.read_table(file, columns=["key"]).column("key").to_pylist()
    return keys


def rejected_keys(store: Store, manifest: Manifest) -> dict[str, tuple[str, str]]:
    """The inputs that are rejected as things stand, with (plan, `stage/code`): as the last plan that had them decided."""
    decided: dict[str, tuple[int, str]] = {}
    position = {plan_id: number for number, plan_id in enumerate(manifest.plan_ids)}
    for plan_id, key, code in rejections(store, manifest):
        if position[plan_id] >= decided.get(key, (0, ""))[0]:
            decided[key] = (position[plan_id], code)
    if len(position) > 1:
        for plan_id, number in position.items():
            for key in plan_keys(store, plan_id):
                if key in decided and decided[key][0] < number:
                    del decided[key]  # that plan kept it
    return {key: (manifest.plan_ids[number], code) for key, (number, code) in decided.items()}


def rejections(store: Store, manifest: Manifest) -> Iterator[tuple[str, str, str]]:
    """(plan, key, `stage/code`) of every row of the errors tables."""
    for shard in read_shards(store, manifest.pages):
        if shard.errors is not None:
            with store.open(shard.errors) as file:
                table = pq.read_table(file, columns=["key", "stage", "code"])
            for row in table.to_pylist():
                yield shard.plan, row["key"], f"{row['stage']}/{row['code']}"
