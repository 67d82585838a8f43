"""Labels that are registered once and used by name: PUT /v1/labels/animals, then {"label_set": "animals"}.

They lie on the board, so every replica knows them, and a replica that dies takes none along. They end with the service.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

import pydantic_core

from sightline.serve.board import Board
from sightline.serve.problems import ProblemError

PREFIX = "label-set/"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST = 1_000


@dataclass(frozen=True)
class LabelSet:
    """Labels with, perhaps, the prompt templates that go with them."""

    labels: list[str]
    templates: list[str] | None = None


class LabelSets:
    """The registered sets of a service; each call asks the board."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def put(self, name: str, labels: LabelSet) -> bool:
        """Register a set, or replace it; whether it is new.

        Raises:
            ProblemError: the name is no name (422), or there are too many sets (409).
        """
        if not NAME.fullmatch(name):
            raise ProblemError(
                422, "invalid-field", "the name of a label set has 1 to 64 letters, digits, dots, hyphens or underscores"
            )
        known = self.names()
        if name not in known and len(known) >= MOST:
            raise ProblemError(409, "too-many-label-sets", f"there are {MOST:,} label sets already; DELETE one first")
        self._board.put(PREFIX + name, pydantic_core.to_json(asdict(labels)))
        return name not in known

    def get(self, name: str) -> LabelSet:
        """Raises: ProblemError: there is none of that name (404)."""
        value = self._board.get(PREFIX + name) if NAME.fullmatch(name) else None
        if value is None:
            raise unknown(name)
        return LabelSet(**pydantic_core.from_json(value))

    def delete(self, name: str) -> None:
        """Raises: ProblemError: there is none of that name (404)."""
        if not (NAME.fullmatch(name) and self._board.delete(PREFIX + name)):
            raise unknown(name)

    def names(self) -> list[str]:
        return [name.removeprefix(PREFIX) for name in self._board.names(PREFIX)]


def unknown(name: str) -> ProblemError:
    return ProblemError(
        404,
        "unknown-label-set",
        f"there is no label set {name[:64]!r}; GET /v1/labels lists them, PUT /v1/labels/NAME registers one",
    )
