"""Real kills: an ingest that died anywhere is finished by the same command, with the root of one that never died."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.corpus.verify import verify
from sightline.pipelines.ingest import build, job
from sightline.pipelines.ingest.prepare import Prepared, prepare, prepare_append
from sightline.pipelines.ingest.report import IngestOptions
from sightline.pipelines.ingest.sources import detect
from sightline.pipelines.ingest.sources.class_folder import ClassFolder
from tests.corpora import ingest_alone
from tests.faults.kills import DEADLINE_S, VICTIMS, kill_and_finish, wait_for


def pictures(folder: Path, count: int, side: int = 16) -> Path:
    """Two class folders of noise; files differ by a comment, for drawing and encoding so many would take longer than the test."""
    noise, drawn = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(noise.integers(0, 256, (side, side, 3), np.uint8)).save(drawn, "JPEG")
    data = drawn.getvalue()
    for i in range(count):
        path = folder / ("cat", "dog")[i % 2] / f"{i:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data[:2] + b"\xff\xfe\x00\x04" + i.to_bytes(2, "big") + data[2:])  # start of image, comment, the rest
    return folder


def begin(source: Path, corpus: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A real `sightline ingest` that has just finished its third shard of six inputs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sightline", "ingest", str(source), str(corpus), "--shard-rows", "6"],
        cwd=source.parent,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(lambda: len(list((corpus / "_staging").rglob("shard-*.json"))) >= 3, process)
    return process


@pytest.mark.parametrize("victim", VICTIMS)
def test_whatever_is_killed_the_same_command_ends_with_the_same_root(
    victim: str, cli_environment: dict[str, str], tmp_path: Path
) -> None:
    source = pictures(tmp_path / "source", 180, 320)
    killed = kill_and_finish(source, tmp_path / "corpus", victim, 4, cli_environment, ("--shard-rows", "6"))
    assert killed.kept == killed.done >= 4
    assert killed.survived == (victim == "worker")
    assert killed.root == Corpus.open(ingest_alone(source, tmp_path / "whole", IngestOptions(shard_rows=6))).root


def test_ctrl_c_ends_with_one_line_and_nothing_that_looks_whole(cli_environment: dict[str, str], tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    process = begin(pictures(tmp_path / "source", 1_200, 320), corpus, cli_environment)  # seconds of work, to be interrupted
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130, stderr.decode()
    assert b"interrupted; the same command again goes on" in stderr
    assert b"Traceback" not in stderr
    with pytest.raises(FileNotFoundError, match="unfinished"):
        Corpus.open(corpus)


class PoisonFolder(ClassFolder):
    """Class folders in which some files kill whoever reads them."""

    kind: ClassVar[str] = "poison_folder"

    def read(self, reference: str) -> bytes:
        if reference.endswith("poison.jpg"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(reference)


def test_an_item_that_kills_its_worker_becomes_an_error_row(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "source", 12)
    for name in ("cat/poison.jpg", "dog/poison.jpg"):
        (source / name).write_bytes(b"x")
    monkeypatch.setitem(detect.KINDS, PoisonFolder.kind, PoisonFolder)
    report = job.ingest(source, tmp_path / "corpus", IngestOptions(kind=PoisonFolder.kind, shard_rows=14))
    assert (report.seen, report.kept, report.errors) == (14, 12, 2)
    assert report.rejected_by_code == {"decode/crash": 2}
    errors = [row for path in (tmp_path / "corpus/errors").rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["key"] for row in errors} == {"cat/poison.jpg", "dog/poison.jpg"}


def test_a_destination_that_cannot_be_written_is_one_clear_error_and_stays_unfinished(ray_local: None, tmp_path: Path) -> None:
    source, corpus = pictures(tmp_path / "source", 4), tmp_path / "corpus"
    prepare(source, corpus, IngestOptions())
    (corpus / "data").write_text("a file where a folder has to be")
    with pytest.raises(OSError, match=r"cannot write .*: Not a directory"):
        job.ingest(source, corpus)
    assert not (corpus / "manifest.json").exists()
    (corpus / "data").unlink()
    assert job.ingest(source, corpus).kept == 4


def test_a_shard_that_never_ends_fails_the_run_after_a_bounded_number_of_attempts(tmp_path: Path) -> None:
    prepared = prepare(pictures(tmp_path / "source", 4), tmp_path / "corpus", IngestOptions())
    for _ in range(build.MAX_ATTEMPTS):
        build.count_attempt(prepared.store, prepared.plan, 0)
    with pytest.raises(RuntimeError, match="was begun 6 times"):
        build.build_shard(prepared.store, prepared.plan, prepared.source, 0)
    build.forget_attempts(prepared.store, prepared.plan)
    assert build.build_shard(prepared.store, prepared.plan, prepared.source, 0).rows == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"only root can make a small disk: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_one_clear_error_and_what_was_committed_stays(ray_local: None, small_disk: Path, tmp_path: Path) -> None:
    source, corpus = pictures(tmp_path / "source", 6), small_disk / "corpus"
    store = open_store(corpus)
    first = job.ingest(source, corpus, IngestOptions(shard_rows=6))
    for path in pictures(tmp_path / "more", 60, 320).rglob("*.jpg"):  # 4 MB
        path.rename(source / path.parent.name / f"new-{path.name}")
    appended = prepare_append(source, corpus, IngestOptions(shard_rows=6))
    assert isinstance(appended, Prepared)
    with pytest.raises(OSError, match=r"cannot write .*: No space left on device; mend that, and the same"):
        job.run(appended)
    assert not verify(store).damages and Corpus.open(corpus).root == first.root
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    again = prepare_append(source, corpus, IngestOptions(shard_rows=6))
    assert isinstance(again, Prepared) and job.run(again).kept == 66
    assert not verify(store).damages
