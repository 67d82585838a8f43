"""`sightline corpus`: what can be done with a corpus once it exists; one file per verb, as one level up."""

from __future__ import annotations

from collections.abc import Callable

import typer

from sightline.cli.corpus.describe import describe
from sightline.cli.corpus.export import export
from sightline.cli.corpus.filter import filter
from sightline.cli.corpus.forget import forget
from sightline.cli.corpus.gc import gc
from sightline.cli.corpus.merge import merge
from sightline.cli.corpus.retry import retry
from sightline.cli.corpus.score import score
from sightline.cli.corpus.verify import verify
from sightline.cli.corpus.why import why

# By name: some verbs share theirs with a builtin.
VERBS: dict[str, Callable[..., None]] = {
    "describe": describe,
    "export": export,
    "filter": filter,
    "forget": forget,
    "gc": gc,
    "merge": merge,
    "retry": retry,
    "score": score,
    "verify": verify,
    "why": why,
}

app = typer.Typer(
    help="Check, describe, change, filter and export corpora.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
