"""What a newcomer types: the whole demo, small, then each of its stages' commands on what it left behind."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import CommandLine, InlineCommandLine


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.timeout(600)
def test_the_demo_ends_with_a_table_a_picture_and_answers(cli: CommandLine, cli_inline: InlineCommandLine, tmp_path: Path) -> None:
    small = ("--train", "400", "--test", "80", "--steps", "12")
    done = cli("demo", "demo", *small, "--port", str(free_port()), "--json", timeout_s=400)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    folder = tmp_path / "demo"
    assert result["metrics"]["zero_shot_classes"] == 60
    assert {"top1_seen", "top1_held_out", "image_to_text_recall@10", "foreground_iou"} <= result["metrics"].keys()
    assert set(result["answers"]) == {"classify", "segment", "embeddings"}
    revision = result["answers"]["classify"]["revision"]
    described = json.loads((Path(result["artifact"]) / "artifact.json").read_text())
    assert revision == described["files"]["weights.safetensors"]
    assert described["provenance"]["corpus_root"] == json.loads((folder / "corpus" / "manifest.json").read_text())["root"]
    assert "top1_held_out" in (folder / "results.md").read_text()
    with Image.open(folder / "scenes.png") as picture:
        assert picture.width > 600
    for stage in ("sample", "ingest", "train", "evaluate", "serve"):
        assert stage in done.stderr

    # Train again: the finished run is found, and nothing is trained twice.
    again = cli_inline("train", "clip_demo", "corpus=demo/corpus", "steps=12", "--runs", "demo/runs", "--without-ray", "--json")
    assert again.exit_code == 0, again.stderr
    report = json.loads(again.stdout.splitlines()[-1])
    assert report["artifact"] == result["artifact"] and report["samples_per_s"] is None
    assert report["final_loss"] == described["provenance"]["final_loss"]

    # Evaluate by hand: the same numbers.
    scored = cli_inline("evaluate", str(result["artifact"]), "demo/corpus", "--json")
    assert scored.exit_code == 0, scored.stderr
    assert json.loads(scored.stdout.splitlines()[-1])["metrics"] == pytest.approx(result["metrics"])
