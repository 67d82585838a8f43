"""One scene: one to three coloured, handwritten digits on a textured background, with its mask, labels and captions.

A scene is a pure function of (seed, size, split, index): how many scenes there are changes none of them. Pairs that
are held out are drawn in the test split only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sightline.pipelines.sample.backgrounds import DARK, LIGHT, TEXTURES, background, brightness_apart_from
from sightline.pipelines.sample.captions import Seen, describe
from sightline.pipelines.sample.glyphs import load_glyphs, warp
from sightline.pipelines.sample.pairs import CLASS_IDS, COLOURS, colour_of, digit_of, held_out, name_of
from sightline.pipelines.sample.spec import SPLITS, SampleSpec, Split

# Sides of a digit's eight cells in a picture of 48 pixels, by the number of digits in it: more digits, less room.
SIDES_PX = {1: (17, 25), 2: (17, 22), 3: (17, 19)}
OVERLAP_PX = 1  # of 48: how deep the boxes of two digits may reach into each other
EDGE_PX = 1  # of 48: room kept at the edge of the picture


@dataclass(frozen=True)
class Scene:
    """image [H, W, 3] uint8; mask [H, W] uint8 of class ids, 0 is background; labels: names, one per digit."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]
    captions: tuple[str, ...]
    labels: tuple[str, ...]


def render(spec: SampleSpec, split: Split, index: int) -> Scene:
    """The scene with this index of this split."""
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), index])
    classes = choose(spec.seed, split, index, rng)
    inks = [_ink(class_id, rng) for class_id in classes]
    glyphs = load_glyphs(spec.seed)
    unit = spec.size / 48
    low, high = SIDES_PX[len(classes)]
    shapes = [warp(glyphs.ink[rng.choice(glyphs.scans[split, digit_of(c)])], unit * rng.uniform(low, high), rng) for c in classes]
    corners = _arrange([shape.shape for shape in shapes], spec.size, rng)

    kind = TEXTURES[int(rng.integers(len(TEXTURES)))]
    brightness = brightness_apart_from([_luma(ink) for ink in inks], rng)
    canvas = background(kind, brightness, spec.size, rng)
    mask = np.zeros((spec.size, spec.size), np.uint8)
    for class_id, ink, shape, (top, left) in zip(classes, inks, shapes, corners, strict=True):
        box = (slice(top, top + shape.shape[0]), slice(left, left + shape.shape[1]))
        canvas[box] += shape[..., None] * (ink - canvas[box])
        mask[box][shape > 0.5] = class_id
    image = (canvas * 255 + 0.5).astype(np.uint8)
    tone = "dark " if brightness < DARK else "light " if brightness > LIGHT else ""
    captions = describe([_seen(c, mask) for c in classes], f"a {tone}{kind} background", rng)
    return Scene(image, mask, captions, tuple(name_of(c) for c in classes))


def choose(seed: int, split: Split, index: int, rng: np.random.Generator) -> tuple[int, ...]:
    """A scene's distinct class ids. In the test split three scenes of four show one digit, the pairs taking turns."""
    if split == "test":
        if index % 4 < 3:
            return (CLASS_IDS[(index // 4 * 3 + index % 4) % len(CLASS_IDS)],)
        return _draw(CLASS_IDS, 2 if rng.random() < 0.67 else 3, rng)
    hidden = held_out(seed)
    toss = rng.random()
    return _draw([c for c in CLASS_IDS if c not in hidden], 1 if toss < 0.7 else 2 if toss < 0.9 else 3, rng)


def _draw(classes: list[int] | tuple[int, ...], count: int, rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(classes[int(i)] for i in rng.choice(len(classes), count, replace=False))


def _ink(class_id: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """An RGB colour that people call by the pair's colour word."""
    return np.array(COLOURS[colour_of(class_id)].rgb(rng.random(3).tolist()), np.float32)


def _luma(rgb: NDArray[np.float32]) -> float:
    return float(rgb @ np.array([0.299, 0.587, 0.114], np.float32))


def _arrange(shapes: list[tuple[int, ...]], size: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Top-left corners such that no two boxes reach more than OVERLAP_PX into each other.

    Each box goes to a uniformly drawn place among those left; where the first ones leave none, all start again.
    """
    unit = size / 48
    edge, overlap = round(EDGE_PX * unit), round(OVERLAP_PX * unit)
    for _ in range(1_000):
        corners: list[tuple[int, int]] = []
        for height, width in shapes:
            free = np.zeros((size, size), bool)
            free[edge : size - edge - height + 1, edge : size - edge - width + 1] = True
            for (top, left), (tall, wide) in zip(corners, shapes, strict=False):
                above, before = max(0, top - height + overlap + 1), max(0, left - width + overlap + 1)
                free[above : top + tall - overlap, before : left + wide - overlap] = False
            places = np.flatnonzero(free)
            if not len(places):
                break
            top, left = divmod(int(rng.choice(places)), size)
            corners.append((top, left))
        else:
            return corners
    raise AssertionError(f"no room for boxes {shapes} in {size} pixels")


def _seen(class_id: int, mask: NDArray[np.uint8]) -> Seen:
    rows, columns = np.nonzero(mask == class_id)
    size = len(mask)
    height = (int(rows.max()) - int(rows.min()) + 1) / size
    x, y = ((float(v.mean()) + 0.5) / size for v in (columns, rows))
    return Seen(name_of(class_id), x, y, height)
