"""Our loop and open_clip's own trainer go from the same weights over the same batches to the same weights.

So results of the two can differ only by the rows that each draws. (`benchmarks/clip_small_vs_open_clip.py` has the whole recipe.)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.spec import RunSpec, resolve
from sightline.recipes import find_recipe
from tests.open_clip_trainer import both
from tests.processes import on_ranks

STEPS, BATCH = 15, 24


def spec_for(corpus: Corpus) -> RunSpec:
    """`clip_small`, narrower; the rate peaks at the recipe's own."""
    spec = find_recipe("clip_small")
    vision = {**spec.model.vision, "image_size": 32, "width": 64, "layers": 2}
    text = {**spec.model.text, "width": 64, "heads": 2}
    model = replace(spec.model, embed_dim=32, vision=vision, text=text, preprocess=replace(spec.model.preprocess, size=32))
    spec = replace(spec, model=model, data=replace(spec.data, corpus=corpus.location), steps=STEPS, global_batch=BATCH)
    return resolve(replace(spec, optim=replace(spec.optim, warmup_steps=4)), corpus, bf16_available=False)


def moved(name: str, before: Tensor, after: Tensor) -> Tensor:
    """How far training took a parameter; without the bias of attention's keys, which no softmax sees: its gradient is rounding
    alone, and AdamW makes steps of it."""
    way = after.reshape(before.shape) - before
    if name.endswith("attn.in_proj_bias"):
        query, _, value = way.chunk(3)
        return torch.cat([query, value])
    return way


def test_both_trainers_end_in_the_same_weights(digits: Corpus, tmp_path: Path) -> None:
    """To float32: the gains of norms stay near one, where rounding 15 updates alone is 1e-5 of how far they come."""
    spec = spec_for(digits)
    ((steps, start, ours, peers),) = on_ranks(1, tmp_path / "ranks", both, spec, tmp_path)
    assert len(steps) == STEPS and steps[-1].loss < steps[0].loss
    assert spec.optim.clip_norm and min(step.grad_norm for step in steps) > spec.optim.clip_norm  # so clipping is compared too
    assert ours.keys() == peers.keys() == start.keys()
    for name, before in start.items():
        found, wanted = moved(name, before, ours[name]), moved(name, before, peers[name])
        error = (found - wanted).norm() / wanted.norm()
        assert wanted.norm() > 0 and error < 2e-5, f"{name}: {error:.2g} of its way"
