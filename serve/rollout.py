"""How a service comes to serve another model without dropping a request.

The plan lies on the board: which model gets which part of the requests, each pinned by its digest. Every replica follows it: it
loads what is new beside what it serves (for that time it needs the memory of both), lets it prove itself, and then changes its
shares in one step; requests under way end with the model they began with. A replica that starts reads the same plan. Nothing is
restarted, so nothing is dropped, and going back is a change of shares.

    plan            what ought to be served
    replica/NAME    the version that a replica has come to, or why it did not
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import pydantic_core

from sightline.serve.board import Board
from sightline.serve.served import Served

PLAN, REPLICAS = "plan", "replica/"
POLL_S = 0.5
SILENT_AFTER_S, FORGOTTEN_AFTER_S = 6.0, 600.0  # a replica that has not reported for that long is gone


@dataclass(frozen=True)
class Part:
    """A model by name, the digest it must have, and its part of the requests."""

    model: str
    artifact: str
    part: float


@dataclass(frozen=True)
class Plan:
    """What ought to be served.

    Attributes:
        base: the model that the service was configured with; another configuration begins a plan of its own.
        parts: one model, or two during a canary; the parts sum to 1.
        before: what the last change replaced, for the way back.
        version: grows by one with each change.
    """

    base: str
    version: int
    parts: tuple[Part, ...]
    before: tuple[Part, ...] = ()

    def changed(self, model: str, artifact: str, part: float) -> Plan:
        """The plan that gives a model its part, and the rest to the one that has most of the requests now.

        Raises:
            ValueError: the part is not above 0 and at most 1, or nothing else is served that could have the rest.
        """
        if not 0 < part <= 1:
            raise ValueError(f"a share of {part:g} is none; give more than 0 and at most 1, as in 0.1")
        if part < 1 and all(one.artifact == artifact for one in self.parts):
            raise ValueError(
                f"{model} is all that is served, so it has no share to change; name another model, or leave the share out"
            )
        new = Part(model, artifact, part)
        main = max((one for one in self.parts if one.artifact != artifact), key=lambda one: one.part, default=None)
        if part == 1 or main is None:
            parts: tuple[Part, ...] = (Part(model, artifact, 1.0),)
        else:
            parts = (Part(main.model, main.artifact, 1 - part), new)
        if parts == self.parts:  # the same command again
            return Plan(self.base, self.version + 1, parts, self.before)
        # The way back from a canary, and from what it became, leads to what was there before it.
        grows = {one.artifact for one in self.parts} == {new.artifact, *({main.artifact} if main else ())} and len(self.parts) == 2
        return Plan(self.base, self.version + 1, parts, self.before if grows else self.parts)

    def back(self) -> Plan:
        """Raises: ValueError: nothing was rolled out before."""
        if not self.before:
            raise ValueError("there is nothing to go back to: no other model has been rolled out")
        return Plan(self.base, self.version + 1, self.before, self.parts)


@dataclass(frozen=True)
class Report:
    """What a replica says of itself. `error`: why it did not come to its plan's version."""

    version: int
    error: str | None
    at: float


class Rollouts:
    """The plan of one service, and what its replicas say."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def start(self, base: str, artifact: str) -> Plan:
        """The plan of a service that was configured with this model: the one that there is, or else that model alone."""
        plan = self.plan()
        if plan is not None and plan.base == base:
            return plan
        first = Plan(base, 1 if plan is None else plan.version + 1, (Part(base, artifact, 1.0),))
        self._board.put(PLAN, pydantic_core.to_json(asdict(first)), overwrite=plan is not None)
        found = self.plan()  # of several replicas that start at once, the first one's
        assert found is not None
        return found

    def plan(self) -> Plan | None:
        value = self._board.get(PLAN)
        if value is None:
            return None
        known = pydantic_core.from_json(value)
        parts, before = (tuple(Part(**part) for part in known[name]) for name in ("parts", "before"))
        return Plan(known["base"], known["version"], parts, before)

    def put(self, plan: Plan) -> None:
        self._board.put(PLAN, pydantic_core.to_json(asdict(plan)))

    def report(self, replica: str, version: int, error: str | None = None) -> None:
        self._board.put(REPLICAS + replica, pydantic_core.to_json(asdict(Report(version, error, time.time()))))

    def reports(self) -> dict[str, Report]:
        """Of the replicas that live."""
        found = {}
        for name in self._board.names(REPLICAS):
            if value := self._board.get(name):
                report = Report(**pydantic_core.from_json(value))
                silent_s = time.time() - report.at
                if silent_s < SILENT_AFTER_S:
                    found[name.removeprefix(REPLICAS)] = report
                elif silent_s > FORGOTTEN_AFTER_S:
                    self._board.delete(name)
        return found

    def carry_out(self, plan: Plan, within_s: float, sleep: Callable[[float], None] = time.sleep) -> int:
        """Put a plan, and wait until all replicas have come to it; how many there are.

        Raises:
            ValueError: a replica refuses, or is not done in time; then all stay with (or return to) what they had.
        """
        old = self.plan()
        assert old is not None
        self.put(plan)
        deadline = time.monotonic() + within_s
        while True:
            reports = self.reports()
            refused = next((report.error for report in reports.values() if report.error and report.version == plan.version), None)
            if refused is None and reports and all(report.version >= plan.version for report in reports.values()):
                return len(reports)
            if refused or time.monotonic() > deadline:
                self.put(Plan(old.base, plan.version + 1, old.parts, old.before))
                raise ValueError(f"nothing was changed: {refused or f'not all replicas had loaded it within {within_s:g} s'}")
            sleep(POLL_S / 5)


class Follower:
    """A replica's side: keeps what it serves in line with the plan.

    Args:
        load: model name and pinned digest → the model, proved; raises ValueError where it does not prove itself.
        serve: takes what is to be served from now on, by digest, with its part.
        having: the models that are loaded already, of that plan.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        replica: str,
        load: Callable[[str, str], Served],
        serve: Callable[[dict[str, tuple[Served, float]]], None],
        having: Sequence[Served],
        plan: Plan,
    ) -> None:
        self._rollouts, self._replica, self._load, self._serve = rollouts, replica, load, serve
        self._having = {served.artifact: served for served in having}
        self._base, self._version, self._seen, self._error = plan.base, plan.version, plan.version, ""
        rollouts.report(replica, plan.version)

    def follow(self) -> Callable[[], None] | None:
        """Load what a new plan wants; gives the change, to be made where requests are answered. Slow: call it from a thread.

        A model that is refused is not tried again until the plan changes.
        """
        plan = self._rollouts.plan()
        if plan is None or plan.version == self._seen or plan.base != self._base:
            self.report()
            return None
        self._seen, self._error = plan.version, ""
        try:
            wanted = {
                part.artifact: (self._having.get(part.artifact) or self._load(part.model, part.artifact), part.part)
                for part in plan.parts
            }
        except Exception as error:  # whatever it is, a memory that is too small for both say: who waits shall hear of it
            self._error = str(error) or type(error).__name__
            self.report()
            return None

        def change() -> None:
            self._having = {digest: served for digest, (served, _) in wanted.items()}
            self._version, self._error = plan.version, ""
            self._serve(wanted)

        return change

    def report(self) -> None:
        self._rollouts.report(self._replica, self._seen if self._error else self._version, self._error or None)
