"""Every second belongs to one part, so that the parts sum to the wall time, through interruptions too."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sightline.pipelines.train.clock import PARTS, Clock, goodput


def test_a_clock_gives_each_moment_to_the_part_that_was_entered_last() -> None:
    now = 100.0
    clock = Clock(lambda: now)
    for part, seconds in (("data", 1.0), ("compute", 5.0), ("data", 0.5), ("checkpoint", 2.0)):
        clock.enter(part)
        now += seconds
    assert clock.take() == {"data": 1.5, "compute": 5.0, "communication": 0.0, "checkpoint": 2.0, "other": 0.0}
    now += 3.0
    assert clock.take()["checkpoint"] == 3.0  # still in the part that it was in


def line(step: int, at: float, began: float, **seconds: float) -> dict[str, Any]:
    return {"step": step, "at": at, "began": began, "seconds": dict.fromkeys(PARTS, 0.0) | seconds}


def test_goodput_of_a_run_that_was_interrupted_and_redid_a_step() -> None:
    lines = [
        line(1, 110.0, 100.0, compute=3.0, data=1.0),  # 6 seconds of start
        line(2, 114.0, 100.0, compute=4.0),
        line(3, 118.0, 100.0, compute=4.0),  # lost: the checkpoint was after step 2
        line(3, 140.0, 130.0, compute=4.0, communication=1.0),  # 17 seconds from the last step to this one's beginning
        line(4, 144.5, 130.0, compute=4.0),  # and half a second that no part claims
    ]
    found = goodput(lines)
    assert found.wall_s == pytest.approx(44.5)
    assert dict(found.seconds) == pytest.approx(
        {"data": 1, "compute": 15, "communication": 1, "checkpoint": 0, "other": 0.5, "start": 6, "restart": 17, "redone": 4}
    )
    assert found.share == pytest.approx(16 / 44.5)


def test_the_parts_sum_to_the_wall_time_whatever_happened() -> None:
    chance = random.Random(0)
    lines, at = [], 0.0
    for attempt in range(5):
        at += chance.random() * 9
        began, first = at, 3 * attempt + 1
        at += chance.random() * 5
        for step in range(first, first + chance.randrange(1, 8)):
            seconds = {part: chance.random() for part in PARTS}
            at += sum(seconds.values()) + chance.random() * 0.01
            lines.append(line(step, at, began, **seconds))
    found = goodput(lines)
    assert sum(found.seconds.values()) == pytest.approx(found.wall_s) == pytest.approx(lines[-1]["at"] - lines[0]["began"])


def test_a_run_without_steps_took_no_time() -> None:
    assert goodput([]).wall_s == 0.0 and goodput([]).share == 0.0
