"""What all replicas of a service know in common: small values by name, outside of every replica, so that none of them can lose it.

Label sets, the plan of a rollout, and what each replica reports of itself lie here. Without Ray it is a dictionary; on Ray it is
the cluster's own key-value store (app.py), which outlives replicas and Serve's controller.
"""

from __future__ import annotations

from typing import Protocol


class Board(Protocol):
    """Names to bytes. Each call may take a moment, and is made from a thread."""

    def get(self, name: str) -> bytes | None: ...

    def put(self, name: str, value: bytes, *, overwrite: bool = True) -> None:
        """Without `overwrite`, the first one to put a value wins."""

    def delete(self, name: str) -> bool:
        """Whether there was one."""

    def names(self, prefix: str) -> list[str]:
        """Those that begin like this, sorted."""


class MemoryBoard:
    """A board for one process."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def get(self, name: str) -> bytes | None:
        return self._values.get(name)

    def put(self, name: str, value: bytes, *, overwrite: bool = True) -> None:
        if overwrite or name not in self._values:
            self._values[name] = value

    def delete(self, name: str) -> bool:
        return self._values.pop(name, None) is not None

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self._values if name.startswith(prefix))
