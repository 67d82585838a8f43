"""Lenses over many models, seeds and images: each part is one Ray task, and what it gives is kept by whoever asked.

A part says what decides its numbers, by `key`; its numbers are tensors by name. They are kept below the output folder as they come,
so that an interrupted command goes on, and workers need not see that folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Numbers = dict[str, Tensor]


class Part(Protocol):
    """One thing to compute."""

    @property
    def key(self) -> str: ...


P = TypeVar("P", bound=Part)


def over(parts: Sequence[P], compute: Callable[[P], Numbers], folder: Path, progress: Callable[[int, int], None]) -> list[Numbers]:
    """What `compute(part)` gives for each part, in order; from `folder` where that is kept. The caller has initialised Ray.

    Raises:
        ValueError: whatever a part says of its model.
        OSError: a worker was lost too often.
    """
    found: dict[int, Numbers] = {}
    task: Any = ray.remote(num_cpus=1, max_retries=3)(alone)
    begun: dict[Any, int] = {}
    for i, part in enumerate(parts):
        if path_of(folder, part).exists():
            found[i] = load_file(path_of(folder, part))
        else:
            begun[task.remote(compute, part)] = i
    waiting = list(begun)
    progress(len(found), len(parts))
    try:
        while waiting:
            done, waiting = ray.wait(waiting)
            i = begun[done[0]]
            found[i] = ray.get(done[0])
            keep(path_of(folder, parts[i]), found[i])
            progress(len(found), len(parts))
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except ray.exceptions.RayError as error:
        raise OSError(f"a worker was lost, perhaps for want of memory: {error}; the same command goes on") from error
    finally:
        for other in waiting:
            ray.cancel(other)
    return [found[i] for i in range(len(parts))]


def alone(compute: Callable[[P], Numbers], part: P) -> Numbers:
    """On one core: the numbers then do not depend on how many there are."""
    torch.set_num_threads(1)
    return compute(part)


def path_of(folder: Path, part: Part) -> Path:
    return folder / f"{part.key}.safetensors"


def keep(path: Path, numbers: Numbers) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(numbers, temporary)
    temporary.replace(path)
