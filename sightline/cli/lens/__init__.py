"""`sightline lens`: what vision models see; one file per lens, as one level up."""

from __future__ import annotations

from collections.abc import Callable

import typer

from sightline.cli.lens.attention import attention
from sightline.cli.lens.efficiency import efficiency
from sightline.cli.lens.erf import erf
from sightline.cli.lens.gallery import gallery
from sightline.cli.lens.nlmeans import nlmeans
from sightline.cli.lens.positions import positions
from sightline.cli.lens.receptive_field import receptive_field
from sightline.cli.lens.supervised import supervised

VERBS: dict[str, Callable[..., None]] = {
    "receptive-field": receptive_field,
    "erf": erf,
    "attention": attention,
    "positions": positions,
    "nlmeans": nlmeans,
    "supervised": supervised,
    "efficiency": efficiency,
    "gallery": gallery,
}

app = typer.Typer(
    help="Look at what a vision model sees: figures, and the numbers behind them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
