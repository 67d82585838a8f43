"""Until when a request's answer is of use; whatever works for it asks before it begins something dear.

The moment travels with the request's task (a context variable), so that it need not stand in every signature.
"""

from __future__ import annotations

import math
import time
from contextvars import ContextVar

from sightline.serve.problems import ProblemError

_ends: ContextVar[float] = ContextVar("deadline", default=math.inf)


def set_deadline(within_s: float) -> None:
    """This request's answer is of use for that long from now."""
    _ends.set(time.monotonic() + within_s)


def ends() -> float:
    """When this request's answer is of no use any more, on the monotonic clock."""
    return _ends.get()


def passed(ends_at: float) -> bool:
    return time.monotonic() >= ends_at


def late() -> ProblemError:
    return ProblemError(
        503,
        "deadline-passed",
        "the model had no time for this request before its deadline; ask again later, or with more X-Deadline-Seconds",
        retry_after_s=1,
    )
