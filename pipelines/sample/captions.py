"""What a person might say of a scene: a small grammar over what the pixels show.

Everything said is true of the mask: positions and relations come from the centres of the visible strokes, size words
from their heights. Every caption names every digit of the scene with its colour, the two words side by side, and has
fewer than 16 words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

COUNTS = ("no", "one", "two", "three")
NEAR, FAR = 0.41, 0.59  # centres between these are neither left nor right, neither upper nor lower
SMALL, LARGE = 0.38, 0.49  # heights of strokes, as a share of the picture's
APART = 0.2  # a relation is said only of centres at least this far apart

PLACES = (
    ("in the upper left", "at the top", "in the upper right"),
    ("on the left", "near the centre", "on the right"),
    ("in the lower left", "at the bottom", "in the lower right"),
)


@dataclass(frozen=True)
class Seen:
    """One digit of a scene as a caption needs it: its name, the centre and the height of its strokes (0..1)."""

    name: str
    x: float
    y: float
    height: float


def describe(digits: Sequence[Seen], ground: str, rng: np.random.Generator) -> tuple[str, ...]:
    """At least three distinct captions, the plainest first.

    Args:
        digits: what is in the scene, one to three.
        ground: the background in words, such as "a dark striped background".
    """
    said = [_plain(digits, rng), _placed(digits, rng), f"{_list(_shuffled(digits, rng))} on {ground}"]
    if len(digits) > 1:
        said += [_counted(digits, rng), *_related(digits, rng)]
    elif sized := _sized(digits[0]):
        said.append(_pick((f"a {sized}", f"a {sized} {place(digits[0])}", f"a {sized} on {ground}"), rng))
    return tuple(dict.fromkeys(said))


def place(digit: Seen) -> str:
    """Where in the picture the digit is."""
    row, column = ((v > NEAR) + (v > FAR) for v in (digit.y, digit.x))
    return PLACES[row][column]


def relation(a: Seen, b: Seen) -> str | None:
    """Where `a` is, seen from `b`, in words; None where their centres are too close to say."""
    dx, dy = b.x - a.x, b.y - a.y
    if max(abs(dx), abs(dy)) < APART:
        return None
    if abs(dy) > abs(dx):
        return "above" if dy > 0 else "below"
    return "to the left of" if dx > 0 else "to the right of"


def _plain(digits: Sequence[Seen], rng: np.random.Generator) -> str:
    if len(digits) > 1:
        return _list(digits)
    name = digits[0].name
    return _pick((f"a {name}", f"a {name}", f"one {name}", f"a handwritten {name}", f"a picture of a {name}"), rng)


def _placed(digits: Sequence[Seen], rng: np.random.Generator) -> str:
    first, *others = _shuffled(digits, rng)
    if not others:
        return _pick(
            (
                f"a {first.name} {place(first)}",
                f"{place(first)}, a {first.name}",
                f"there is a {first.name} {place(first)}",
            ),
            rng,
        )
    if len(others) == 1:
        return f"a {first.name} {place(first)} and a {others[0].name} {place(others[0])}"
    return f"a {first.name} {place(first)}, with {_list(others)}"


def _counted(digits: Sequence[Seen], rng: np.random.Generator) -> str:
    return f"{COUNTS[len(digits)]} digits: {_list(_shuffled(digits, rng))}"


def _related(digits: Sequence[Seen], rng: np.random.Generator) -> list[str]:
    a, b, *others = _shuffled(digits, rng)
    words = relation(a, b)
    if words is None:
        return []
    return [f"a {a.name} {words} a {b.name}" + (f", with {_list(others)}" if others else "")]


def _sized(digit: Seen) -> str | None:
    if SMALL < digit.height < LARGE:
        return None
    return f"{'small' if digit.height <= SMALL else 'large'} {digit.name}"


def _list(digits: Sequence[Seen]) -> str:
    *before, last = (f"a {digit.name}" for digit in digits)
    return f"{', '.join(before)} and {last}" if before else last


def _shuffled(digits: Sequence[Seen], rng: np.random.Generator) -> list[Seen]:
    return [digits[i] for i in rng.permutation(len(digits))]


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
