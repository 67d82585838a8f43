"""A decoder that hangs costs its process its life, and so one item: whoever runs shards begins this one again, and in the
end decodes its items apart, where the death of a process is an error row.

The watch is faulthandler's: a thread in C. A decoder that hangs in C never comes back to Python, where a signal's handler
or an exception could reach it. Setting the watch takes 70 µs, an image 2 ms; so it is set anew only now and then.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ITEM_LIMIT_S = 600.0  # reading included; the slowest picture within the pixel limit decodes in a few seconds


@contextmanager
def watchdog(limit_s: float = ITEM_LIMIT_S) -> Iterator[Callable[[], None]]:
    """A function to call before each item; this process ends, with a traceback, if it is not called again within about `limit_s`.

    The watch is off once the block ends. There is one in a process.
    """
    set_at = -limit_s

    def beat() -> None:
        nonlocal set_at
        now = time.monotonic()
        if now - set_at > limit_s / 10:
            set_at = now
            faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or sys.stderr)

    beat()
    try:
        yield beat
    finally:
        faulthandler.cancel_dump_traceback_later()
