"""Contrasting captions against predicting them: zero-shot accuracy over samples seen, as CLIP's figure 2 has it.

    python -m benchmarks.contrast_vs_predict CORPUS [--steps 400] [--runs FOLDER]

CORPUS is one of scenes, as `sightline sample` and `sightline ingest` make it (demo/corpus). The three recipes have the same images,
captions, image tower, batches and steps; what differs is what is asked of the captions. Every checkpoint is scored on `test`.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from benchmarks.command import sightline
from benchmarks.report import section

DOCS = Path(__file__).resolve().parent.parent / "docs"
RECIPES = {
    "clip_demo": "contrast",
    "words_demo": "predict the words, in any order",
    "captions_demo": "predict the caption, in order",
}
POINTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--runs", type=Path, help="keep the runs there; by default they are removed")
    given = parser.parse_args()
    every = max(1, given.steps // POINTS)
    with tempfile.TemporaryDirectory() as name:
        folder, runs = Path(name), []
        for recipe in RECIPES:
            options = ("--runs", given.runs or folder, "--checkpoint-every", every, "--keep", POINTS + 1, "--evaluate", "test")
            report = sightline("train", recipe, f"corpus={given.corpus}", f"steps={given.steps}", *options, "--track", "none")
            runs.append(Path(report["artifact"]).parent)
        found = sightline("lens", "efficiency", *runs, "--out", folder / "lens")
        shutil.copy(folder / "lens" / "efficiency.svg", DOCS / "efficiency.svg")
    rows = []
    for (recipe, what), line in zip(RECIPES.items(), found["lines"], strict=True):
        assert line["label"].startswith(recipe), (recipe, line["label"])
        samples = f"{'at most ' if line['at_most'] else ''}{line['samples_to_level']:,.0f}"
        rows.append((f"{what} (`{recipe}`)", f"{line['best']:.1%}", samples, f"{line['times_fewer']:.1f}"))
    header = (
        "what is asked of captions",
        "best zero-shot top-1",
        f"samples to {found['level']:.1%}",
        "times fewer than the slowest",
    )
    command, what = "python -m benchmarks.contrast_vs_predict CORPUS", f"{given.steps} steps each on scenes, one seed"
    section("Contrasting and predicting", command, what, ("torch", "timm"), header, rows)


if __name__ == "__main__":
    main()
