"""Which download may begin next, so that results come in order, few are in memory and no host is pressed.

Downloads have numbers in input order. One begins when fewer than `slots` are begun and not delivered, and fewer than
`per_host` of its host are under way; among those, the first in order. Hence the next one to be delivered can always
begin: what its host was busy with comes before it, and is delivered.
"""

from __future__ import annotations

from collections import defaultdict, deque
from heapq import heappop, heappush


class Window:
    """The numbers that wait, by host; those under way; and a count of those in memory."""

    def __init__(self, slots: int, per_host: int) -> None:
        self._free, self._per_host = slots, per_host
        self._waiting: dict[str, deque[int]] = {}
        self._active: defaultdict[str, int] = defaultdict(int)
        self._host_of: dict[int, str] = {}
        self._ready: list[tuple[int, str]] = []  # the first number of each host that could begin
        self._listed: set[str] = set()

    def add(self, number: int, host: str) -> None:
        self._host_of[number] = host
        self._waiting.setdefault(host, deque()).append(number)
        self._list(host)

    def begin(self) -> int | None:
        """The number to begin now; None where nothing can."""
        if not self._free or not self._ready:
            return None
        number, host = heappop(self._ready)
        self._listed.remove(host)
        assert self._waiting[host].popleft() == number
        self._free -= 1
        self._active[host] += 1
        self._list(host)
        return number

    def finish(self, number: int) -> None:
        """Its host may serve another."""
        host = self._host_of.pop(number)
        self._active[host] -= 1
        self._list(host)
        if not self._active[host]:
            del self._active[host]
            if not self._waiting[host]:
                del self._waiting[host]

    def deliver(self) -> None:
        """A finished one left memory."""
        self._free += 1

    def _list(self, host: str) -> None:
        if host not in self._listed and self._waiting[host] and self._active[host] < self._per_host:
            heappush(self._ready, (self._waiting[host][0], host))
            self._listed.add(host)
