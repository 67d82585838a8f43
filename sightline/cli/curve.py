"""Few-shot accuracy against zero-shot, drawn as an SVG: it needs no library, and opens everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.pipelines.evaluate.few_shot import Point

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 64, 24, 48, 56
LINE, NAME = "#0072b2", "#d55e00"  # of a colour-blind-safe palette (Okabe and Ito 2008)


def draw_curve(title: str, points: Sequence[Point], everything: float, zero_shot: float | None, path: Path) -> None:
    """Accuracy over examples a class (logarithmic), with its intervals; dashed what names alone and what all rows reach."""
    first, last = log2(points[0].shots), log2(points[-1].shots)

    def x(shots: int) -> float:
        share = (log2(shots) - first) / (last - first) if last > first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(accuracy: float) -> float:
        return TOP + (1 - min(1.0, max(0.0, accuracy))) * (HEIGHT - TOP - BOTTOM)

    def text(where: tuple[float, float], words: str, anchor: str = "middle", colour: str = "#222") -> str:
        return f'<text x="{where[0]:.1f}" y="{where[1]:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'

    def line(start: tuple[float, float], end: tuple[float, float], colour: str, more: str = "") -> str:
        return f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" stroke="{colour}" {more}/>'

    parts = [text((WIDTH / 2, 24), title)]
    for tenth in range(0, 11, 2):
        level = y(tenth / 10)
        parts += [line((LEFT, level), (WIDTH - RIGHT, level), "#ddd"), text((LEFT - 8, level + 4), f"{10 * tenth} %", "end")]
    parts += [text((x(point.shots), HEIGHT - BOTTOM + 20), str(point.shots)) for point in points]
    parts.append(text((WIDTH / 2, HEIGHT - 12), "examples a class (bars: 95 % interval of the mean over draws)"))
    levels = [("all training rows", everything, "#555"), *([] if zero_shot is None else [("zero-shot", zero_shot, NAME)])]
    for words, reached, colour in levels:
        parts.append(line((LEFT, y(reached)), (WIDTH - RIGHT, y(reached)), colour, 'stroke-dasharray="6 4"'))
        parts.append(text((WIDTH - RIGHT, y(reached) - 5), f"{words} {100 * reached:.1f} %", "end", colour))
    way = " ".join(f"{x(point.shots):.1f},{y(point.mean):.1f}" for point in points)
    parts.append(f'<polyline points="{way}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    for point in points:
        if point.half_width == point.half_width:  # a single draw has no interval
            low, high = ((x(point.shots), y(point.mean + sign * point.half_width)) for sign in (-1, 1))
            parts.append(line(low, high, LINE, 'stroke-width="2"'))
        parts.append(f'<circle cx="{x(point.shots):.1f}" cy="{y(point.mean):.1f}" r="4" fill="{LINE}"/>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
    path.write_text("\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>', *parts, "</svg>", ""]))
