"""What a run would be, before anything of it is paid for."""

from __future__ import annotations

from dataclasses import dataclass

from sightline.models.flops import cost
from sightline.models.sharding import STATE_BYTES
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.train.locked import count_parameters
from sightline.pipelines.train.spec import RunSpec, samples_of, select_rows


@dataclass(frozen=True)
class RunPlan:
    """A resolved run in numbers.

    Attributes:
        run: its name.
        rows, epochs: what is trained on, and how often.
        pairs: samples in all.
        parameters: of both towers.
        state_bytes_ddp, state_bytes_fsdp: weights, gradients and optimizer state that each worker holds, without towers whose
            outputs are kept instead.
        flops_per_pair, flops: of training; a locked image tower's single pass over the rows is in `flops` alone.
    """

    run: str
    precision: str
    workers: int
    rows: int
    steps: int
    global_batch: int
    epochs: float
    pairs: int
    parameters: int
    state_bytes_ddp: int
    state_bytes_fsdp: int
    flops_per_pair: int
    flops: int


def plan_run(spec: RunSpec, workers: int) -> RunPlan:
    """The numbers of a resolved run on so many workers."""
    corpus = Corpus.open(spec.data.corpus, spec.data.root)
    rows, _ = select_rows(corpus, spec.data)
    price = cost(spec.model, spec.contrasted)
    pairs = spec.steps * spec.global_batch
    once = len(rows) * price.locked
    state = STATE_BYTES * count_parameters(spec.model)
    return RunPlan(
        run=f"{spec.recipe}-{spec.run_id}",
        precision=spec.precision,
        workers=workers,
        rows=len(rows),
        steps=spec.steps,
        global_batch=spec.global_batch,
        epochs=pairs / len(samples_of(corpus, rows, spec.data)),
        pairs=pairs,
        parameters=price.parameters,
        state_bytes_ddp=state,
        state_bytes_fsdp=-(-state // workers),
        flops_per_pair=price.training,
        flops=pairs * price.training + once,
    )
