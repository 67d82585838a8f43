"""Textured, greyish backgrounds: colour belongs to the digits alone, and what a caption calls striped is striped."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Float2D = NDArray[np.float32]

TEXTURES = ("cloudy", "striped", "shaded", "speckled", "chequered")
DARK, LIGHT = 0.28, 0.66  # mean brightness below and above which a caption may say dark or light


def texture(kind: str, size: int, rng: np.random.Generator) -> Float2D:
    """A pattern of one of TEXTURES, [size, size] in about -1..1 with mean 0."""
    pattern: NDArray[np.floating]
    if kind == "cloudy":
        pattern = _smooth_noise(int(rng.integers(4, 8)), size, rng)
    elif kind == "speckled":
        pattern = _smooth_noise(int(rng.integers(24, 32)), size, rng)
    else:
        angle = rng.uniform(0, math.tau)
        y, x = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size), indexing="ij")
        along, across = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
        phase, waves = rng.uniform(0, math.tau), rng.uniform(2.5, 5) * math.pi
        if kind == "striped":
            pattern = np.clip(2 * np.sin(waves * along + phase), -1, 1)
        elif kind == "chequered":
            pattern = np.clip(3 * np.sin(waves * along + phase) * np.sin(waves * across + phase), -1, 1)
        else:
            assert kind == "shaded", kind
            pattern = along
    return (pattern - pattern.mean()).astype(np.float32)


def _smooth_noise(grid: int, size: int, rng: np.random.Generator) -> Float2D:
    coarse = Image.fromarray(rng.uniform(-1, 1, (grid, grid)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def background(kind: str, brightness: float, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A texture around a brightness, with a faint tint and a little grain: [size, size, 3] in 0..1."""
    contrast = rng.uniform(0.06, 0.13) * (1.6 if kind == "shaded" else 1.0)
    tint = rng.uniform(-0.025, 0.025, 3).astype(np.float32)
    grain = rng.uniform(0.005, 0.025) * rng.standard_normal((size, size), np.float32)
    grey = brightness + contrast * texture(kind, size, rng) + grain
    return np.clip(grey[..., None] + tint, 0, 1)


def brightness_apart_from(lumas: list[float], rng: np.random.Generator) -> float:
    """A background brightness that keeps the given digits legible: dark to light, away from their own."""
    candidates = rng.uniform(0.1, 0.86, 16)
    distance = np.abs(candidates[:, None] - np.array(lumas)).min(axis=1)
    far = np.flatnonzero(distance >= 0.2)
    return float(candidates[far[0] if len(far) else distance.argmax()])
