"""Twenty kills spread over an ingest: whatever dies, the same command ends with the root of a run that nothing disturbed.

    python -m benchmarks.campaign_ingest [KILLS]

Each run is a real `sightline ingest` of noise pictures; its driver, one of its workers or its raylet gets SIGKILL once a
certain number of shards are done, over the whole length of the run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from benchmarks.report import section
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.ingest.report import IngestOptions
from tests.corpora import ingest_alone
from tests.faults.kills import VICTIMS, Killed, kill_and_finish
from tests.faults.test_ingest_faults import pictures

IMAGES, SHARD_ROWS = 300, 6


def main(kills: int = 20) -> None:
    shards = IMAGES // SHARD_ROWS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = pictures(folder / "source", IMAGES, 320)
        root = Corpus.open(ingest_alone(source, folder / "whole", IngestOptions(shard_rows=SHARD_ROWS))).root
        outcomes: dict[str, list[Killed]] = {victim: [] for victim in VICTIMS}
        for number in range(kills):
            victim = VICTIMS[number % len(VICTIMS)]
            after = 1 + number * (shards - 8) // kills
            killed = kill_and_finish(source, folder / f"{number}", victim, after, os.environ, ("--shard-rows", str(SHARD_ROWS)))
            print(
                f"kill {number + 1} of {kills}: {victim} after {killed.done} of {shards} shards: {killed}",
                file=sys.stderr,
                flush=True,
            )
            outcomes[victim].append(killed)
    rows = [
        [
            victim,
            str(len(results)),
            f"{min(r.done for r in results)} to {max(r.done for r in results)}",
            f"{sum(r.kept for r in results)} of {sum(r.done for r in results)}",
            str(sum(r.survived for r in results)),
            f"{sum(r.root == root for r in results)} of {len(results)}",
        ]
        for victim, results in outcomes.items()
        if results
    ]
    header = ["killed", "runs", "shards done by then", "of these kept", "went on by itself", "same root"]
    what = f"SIGKILL during an ingest of {IMAGES} images in {shards} shards, then the same command again"
    section("Kills during ingest", "python -m benchmarks.campaign_ingest", what, ("ray", "pyarrow"), header, rows)
    assert all(result.root == root for results in outcomes.values() for result in results)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
