"""torch's threads: each caller with work of its own does best on one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def on_one_thread() -> Iterator[None]:
    """torch works in the calling thread alone, as every thread that has images of its own should, and how many threads there are
    cannot change where an operation is split. Other threads keep their number; one that begins meanwhile gets 1 for good.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
