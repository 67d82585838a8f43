"""A small corpus of coloured digits, written without Ray: the plan, the shards and the commit in plain loops."""

from __future__ import annotations

from pathlib import Path

from sightline.pipelines.corpus.manifest import commit
from sightline.pipelines.ingest.build import build_shard
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions
from sightline.pipelines.sample.spec import SampleSpec
from sightline.pipelines.sample.write import write_sample


def digits_source(folder: Path, train: int = 240, val: int = 20, test: int = 120) -> Path:
    write_sample(folder, SampleSpec(train=train, val=val, test=test))
    return folder


def ingest_alone(source: Path, dest: Path) -> Path:
    prepared = prepare(source, dest, IngestOptions())
    shards = range(prepared.plan.shards)
    records = {i: build_shard(prepared.store, prepared.plan, prepared.source, i) for i in shards}
    commit(prepared.store, prepared.plan, records, prepared.classes, {})
    return dest
