"""A small corpus of coloured digits, written without Ray: the plan, the shards and the commit in plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from sightline.pipelines.corpus.commit import commit_plan
from sightline.pipelines.ingest.build import build_shard
from sightline.pipelines.ingest.prepare import Prepared, prepare
from sightline.pipelines.ingest.report import IngestOptions, IngestReport
from sightline.pipelines.sample.spec import SampleSpec
from sightline.pipelines.sample.write import write_sample

Place = TypeVar("Place", str, Path)


def digits_source(folder: Path, train: int = 240, val: int = 20, test: int = 120) -> Path:
    write_sample(folder, SampleSpec(train=train, val=val, test=test))
    return folder


def ingest_alone(source: str | Path, dest: Place, options: IngestOptions | None = None) -> Place:
    finish_alone(prepare(source, dest, options or IngestOptions()))
    return dest


def finish_alone(prepared: Prepared) -> IngestReport:
    store, plan = prepared.store, prepared.plan
    records = {i: build_shard(store, plan, prepared.source, i) for i in range(plan.shards)}
    how = {"source": prepared.location, "change": prepared.change, "retried": prepared.retried, "onto": prepared.onto}
    return IngestReport.of(commit_plan(store, plan, records, prepared.classes, {}, **how))
