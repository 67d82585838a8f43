"""What a hundred thousand rows in a thousand shards cost the driver, and how long such a corpus takes to open.

    python -m benchmarks.corpus_scale

The images are one pixel each: this measures what grows with rows and shards, not pixels.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.report import section
from sightline.infra.session import ray_session
from sightline.pipelines.corpus.manifest import read_manifest
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.ingest.job import run
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions

ROWS, SHARD_ROWS = 100_000, 100


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "source")
        begun = time.process_time()
        prepared = prepare(folder / "source", folder / "corpus", IngestOptions(shard_rows=SHARD_ROWS))
        planned = time.process_time()
        with ray_session():
            started = time.process_time()
            wall = time.monotonic()
            report = run(prepared)
            wall = time.monotonic() - wall
            ended = time.process_time()
        assert report.kept == ROWS, report
        store = open_store(folder / "corpus")
        manifest = median_ms(lambda: read_manifest(store))
        whole = median_ms(lambda: Corpus.open(folder / "corpus"))
    rows = [
        ["CPU of the driver: listing and planning", f"{planned - begun:.1f} s"],
        ["CPU of the driver: running and committing", f"{ended - started:.1f} s"],
        ["wall clock of the run", f"{wall:.0f} s"],
        ["opening the manifest", f"{manifest:.1f} ms"],
        ["opening the corpus, sizes of all files checked", f"{whole:.1f} ms"],
    ]
    what = f"{ROWS:,} one-pixel images in {ROWS // SHARD_ROWS:,} shards"
    section("A thousand shards", "python -m benchmarks.corpus_scale", what, ("ray", "pyarrow"), ["what", "cost"], rows)


def write_source(folder: Path) -> None:
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "PNG")
    for part in range(10):
        keys = [f"{part}-{row:05d}" for row in range(ROWS // 10)]
        images = [{"bytes": buffer.getvalue(), "path": f"{key}.png"} for key in keys]
        table = pa.table({"key": keys, "image": images, "caption": [f"picture {key}" for key in keys]})
        pq.write_table(table, folder / f"part-{part}.parquet", row_group_size=1_000)


def median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(7):
        begun = time.perf_counter()
        call()
        times.append((time.perf_counter() - begun) * 1_000)
    return statistics.median(times)


if __name__ == "__main__":
    main()
