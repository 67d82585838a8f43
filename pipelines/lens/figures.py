"""One style for the figures of all lenses. The same numbers give the same bytes: no dates, and SVG ids from a fixed salt.

Figures are drawn without pyplot, which keeps state and looks for a display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of a colour-blind-safe palette (Okabe and Ito 2008), in the order in which series take them.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
FIELD = "magma"  # a perceptually uniform map for anything that has a size and no sign
INCH = 3.2  # the side of a panel
STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 144,
    "svg.hashsalt": "sightline",
}


def need() -> Any:
    """matplotlib in our style.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ModuleNotFoundError('figures need matplotlib; pip install "sightline[lens]"') from None
    from cycler import cycler

    settings: Any = matplotlib.rcParams
    settings.update(STYLE | {"axes.prop_cycle": cycler(color=COLOURS)})
    return matplotlib


def panels(count: int, columns: int = 4, side: float = INCH) -> tuple[Figure, list[Any]]:
    """A figure of that many axes in rows."""
    need()
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = -(-count // across)
    figure = Figure(figsize=(side * across, side * down), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(down, across)).ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def show_field(axes: Any, field_HW: NDArray[Any], title: str, box: Sequence[int] | None = None) -> None:
    """A map of sizes, largest value brightest; `box` (top, left, bottom, right) is outlined."""
    axes.imshow(field_HW, cmap=FIELD, vmin=0, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()
    if box is not None:
        from matplotlib.patches import Rectangle

        top, left, bottom, right = box
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor="white", linestyle=":", linewidth=1
            )
        )


def save(figure: Figure, path: Path) -> Path:
    """Write a figure, as SVG or PNG by its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
    return path
