"""Checkpoints are whole or do not count: on a disk and in a bucket, killed while they are written, at any number of workers."""

from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train import checkpoints
from sightline.pipelines.train.loop import Hooks, train
from sightline.pipelines.train.rank import Step
from sightline.pipelines.train.spec import Launch, RunSpec
from tests.kills_while_saving import killed_saves
from tests.pipelines.test_loop import spec_for
from tests.processes import on_ranks
from tests.s3 import MakeBucket


def short(digits: Corpus, steps: int = 9) -> RunSpec:
    return replace(spec_for(digits), steps=steps)


def go(spec: RunSpec, launch: Launch, until: int | None = None) -> list[Step]:
    """Train, and be told to end in step `until`: what was done is saved."""
    done: list[Step] = []
    try:
        train(
            spec,
            launch,
            Corpus.open(spec.data.corpus, spec.data.root),
            Hooks(done.append, leaving=lambda: len(done) + 1 == until, stop_when_leaving=True),
        )
    except KeyboardInterrupt:
        assert done == [] or len(done) == until  # rank 0 alone reports
    return done


def weights(launch: Launch) -> dict[str, torch.Tensor]:
    return load_file(launch.run_dir / "artifact" / "weights.safetensors")


@pytest.mark.timeout(600)
def test_any_number_of_workers_goes_on_where_another_stopped(digits: Corpus, tmp_path: Path) -> None:
    """Batches of 25, which neither 2 nor 3 divide: 2 workers for four steps, then 1, then 3 to the end."""
    spec = replace(short(digits, 12), global_batch=25, optim=replace(spec_for(digits).optim, ema=0.9, layer_decay=0.8))
    whole = on_ranks(1, tmp_path / "r0", go, spec, Launch(tmp_path / "whole"))[0]
    launch = Launch(tmp_path / "parts")
    parts = [
        *on_ranks(2, tmp_path / "r1", go, spec, launch, 4)[0],
        *on_ranks(1, tmp_path / "r2", go, spec, launch, 3)[0],
        *on_ranks(3, tmp_path / "r3", go, spec, launch)[0],
    ]
    assert [step.step for step in parts] == [step.step for step in whole] == list(range(1, 13))
    assert [step.read for step in parts] == [step.read for step in whole]
    assert [step.loss for step in parts] == pytest.approx([step.loss for step in whole], abs=1e-4)
    for name, tensor in weights(Launch(tmp_path / "whole")).items():
        assert torch.allclose(weights(launch)[name], tensor, atol=2e-4), name
    # Where the data goes on is a step of a named run; the rest of the record is the names of files.
    (*_, last) = checkpoints.complete(launch.saved_at, spec.run_id)
    record = json.loads((Path(last.path) / checkpoints.MARKER).read_text())
    assert record.pop("files") and len(json.dumps(record)) < 1024


def test_a_bucket_holds_checkpoints_as_a_folder_does(digits: Corpus, tmp_path: Path, s3: MakeBucket) -> None:
    spec = short(digits)
    here = Launch(tmp_path / "here", checkpoint_every=2)
    there = Launch(tmp_path / "there", checkpoint_every=2, checkpoints=f"{s3()}/checkpoints", keep=3)
    on_ranks(1, tmp_path / "r0", go, spec, here)
    assert len(on_ranks(2, tmp_path / "r1", go, spec, there, 5)[0]) == 5
    found = checkpoints.newest(there.saved_at, spec.run_id)
    assert found is not None and found.step == 5
    assert [step.step for step in on_ranks(1, tmp_path / "r2", go, spec, there)[0]] == [6, 7, 8, 9]
    assert [one.step for one in checkpoints.complete(there.saved_at, spec.run_id)] == [6, 8, 9]
    assert not (there.run_dir / "checkpoints").exists()
    for name, tensor in weights(here).items():
        assert torch.allclose(weights(there)[name], tensor, atol=1e-5), name


def test_kills_while_saving_leave_no_latest_that_cannot_be_loaded(tmp_path: Path) -> None:
    """The small version of the campaign's two hundred."""
    result = killed_saves(tmp_path, kills=10, seed=0)
    assert result.kills == 10 and result.unloadable == 0
    assert result.steps_kept > 0


def full_disk(spec: RunSpec, launch: Launch) -> str:
    """Files may not grow beyond what the first checkpoint's small files need: a write ends with an error, as on a full disk."""

    def limit(step: Step) -> None:
        if step.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    try:
        train(spec, launch, Corpus.open(spec.data.corpus, spec.data.root), Hooks(limit))
    except OSError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return ""


def test_a_full_disk_ends_with_a_remedy_and_the_checkpoint_before(digits: Corpus, tmp_path: Path) -> None:
    spec, launch = short(digits, 6), Launch(tmp_path / "run", checkpoint_every=2, keep=1)
    (message,) = on_ranks(1, tmp_path / "r", full_disk, spec, launch)
    # The first save, after step 2, may still be under way when the limit comes.
    assert "could not be written" in message and "make room and give the same command again" in message
    found = checkpoints.newest(launch.saved_at, spec.run_id)
    assert found is None or found.step == 2
    assert on_ranks(1, tmp_path / "again", go, spec, launch)[0][-1].step == 6


def loaded_into_others(folder: Path) -> list[str]:
    """What is said when a checkpoint of one layer is loaded into another shape of it, and into a deeper model."""

    def state(*layers: nn.Linear) -> checkpoints.State:
        towers = nn.Sequential(*layers)
        return checkpoints.State(towers, torch.optim.AdamW(towers.parameters()))

    saves = checkpoints.Checkpoints(folder, "run")
    saves.begin(1, 0.5, "00", state(nn.Linear(4, 4)))
    saves.close()
    found, said = checkpoints.newest(folder, "run"), []
    assert found is not None
    for other in (state(nn.Linear(4, 5)), state(nn.Linear(4, 4), nn.Linear(4, 4))):
        try:
            checkpoints.load(found, other)
        except ValueError as error:
            said.append(str(error))
    return said


def test_a_checkpoint_of_another_model_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (said,) = on_ranks(1, tmp_path / "r", loaded_into_others, tmp_path / "saved")
    assert len(said) == 2 and all("does not fit this model" in line and "begin another run" in line for line in said)


def unfused_then_fused(folder: Path) -> tuple[bool | None, torch.Tensor, torch.Tensor]:
    """How an optimizer computes after it loaded what one that computes otherwise has saved, and both first moments."""
    states = []
    for fused in (None, True):
        towers = nn.Linear(4, 4)
        states.append(checkpoints.State(towers, torch.optim.AdamW(towers.parameters(), fused=fused)))
    old, new = states
    old.towers(torch.ones(1, 4)).sum().backward()
    old.optimizer.step()
    saves = checkpoints.Checkpoints(folder, "run")
    saves.begin(1, 0.5, "00", old)
    saves.close()
    found = checkpoints.newest(folder, "run")
    assert found is not None
    checkpoints.load(found, new)
    moments = [state.optimizer.state[state.towers.weight]["exp_avg"] for state in states]
    return new.optimizer.param_groups[0]["fused"], *moments


def test_how_to_compute_is_not_in_a_checkpoint(tmp_path: Path) -> None:
    """A run that began before its optimizer was fused goes on fused."""
    ((fused, saved, loaded),) = on_ranks(1, tmp_path / "r", unfused_then_fused, tmp_path / "saved")
    assert fused is True and torch.equal(saved, loaded) and bool(saved.any())


def fake(root: Path, step: int, run_id: str = "run", size: int = 3, score: float | None = None) -> Path:
    folder = root / f"step-{step:08d}-abc"
    folder.mkdir(parents=True)
    (folder / "data").write_bytes(b"abc")
    record = {"step": step, "loss": 0.5, "read": "00", "run_id": run_id, "files": {"data": size}}
    (folder / checkpoints.MARKER).write_text(json.dumps(record))
    if score is not None:
        (folder / checkpoints.SCORES).write_text(json.dumps({"top1": score}))
    return folder


def test_the_newest_stay_and_the_best_and_those_without_a_score(tmp_path: Path) -> None:
    scores = {10: 0.2, 20: 0.9, 30: None, 40: 0.5, 50: 0.4, 60: 0.3}
    for step, score in scores.items():
        fake(tmp_path, step, score=score)
    (fake(tmp_path, 45) / checkpoints.MARKER).unlink()  # a save that was interrupted
    checkpoints.prune(checkpoints.Place(tmp_path), keep=2, best_by="top1")
    assert [path.name[5:13] for path in sorted(tmp_path.iterdir())] == ["00000020", "00000030", "00000050", "00000060"]
    checkpoints.prune(checkpoints.Place(tmp_path), keep=1, best_by="", scored=True)  # while scores are still to come
    assert [path.name[5:13] for path in sorted(tmp_path.iterdir())] == ["00000030", "00000060"]
    checkpoints.prune(checkpoints.Place(tmp_path), keep=1, best_by="")
    assert [path.name[5:13] for path in sorted(tmp_path.iterdir())] == ["00000060"]


def test_checkpoints_without_their_marker_do_not_count(tmp_path: Path) -> None:
    good = fake(tmp_path, 10)
    fake(tmp_path, 40, run_id="another run")
    fake(tmp_path, 30, size=4)  # cut short
    (fake(tmp_path, 50) / "data").unlink()  # half removed
    (fake(tmp_path, 20) / checkpoints.MARKER).unlink()
    found = checkpoints.newest(tmp_path, "run")
    assert found is not None and (found.path, found.step) == (str(good), 10)
    assert checkpoints.newest(tmp_path / "absent", "run") is None
