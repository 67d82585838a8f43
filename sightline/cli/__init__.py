"""The command line: one file per verb, each with a typed function whose docstring is its help.

A verb does its work, hands its result to `output.emit`, and raises `ValueError` (or a sibling: `FileNotFoundError`, ...) for
whatever the user can mend. `guard` turns those into one line on standard error and exit status 2; our own mistakes stay
tracebacks. Verbs import what is heavy (torch, Ray) inside the function, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from sightline import __version__, settings
from sightline.cli import corpus, lens
from sightline.cli.demo import demo
from sightline.cli.evaluate import evaluate
from sightline.cli.export import export
from sightline.cli.ingest import ingest
from sightline.cli.key import key
from sightline.cli.rollout import rollout
from sightline.cli.sample import sample
from sightline.cli.serve import serve
from sightline.cli.submit import submit
from sightline.cli.train import train
from sightline.cli.verify import verify

VERBS: tuple[Callable[..., None], ...] = (sample, ingest, train, verify, evaluate, export, serve, rollout, key, submit, demo)
# What a person can mend with another argument, another file or another package. The rest is ours and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ModuleNotFoundError)


def guard(verb: Callable[..., None], name: str) -> Callable[..., None]:
    """Wrap a verb so that a user's mistake costs one line, and Ctrl-C ends it with the usual status 130."""

    @functools.wraps(verb)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
        except USER_ERRORS as error:
            if settings.debug():
                raise
            print(f"sightline {name}: {one_line(error)}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print(f"sightline {name}: interrupted; the same command again goes on where work was kept", file=sys.stderr)
            raise typer.Exit(130) from None

    return guarded


def one_line(error: BaseException) -> str:
    """The error's own words on one line; what Ray wrapped is unwrapped to its cause."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, BaseException):
        error = cause
    return " ".join(str(error).split()) or type(error).__name__


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"sightline {__version__}")
        raise typer.Exit()


app = typer.Typer(
    help="From image-text pairs to a served vision-language model, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every verb stand here; each verb has its own --help with an example."""


for _verb in VERBS:
    app.command(_verb.__name__)(guard(_verb, _verb.__name__))
for _group, _within in (("corpus", corpus), ("lens", lens)):
    for _name, _verb in _within.VERBS.items():
        _within.app.command(_name)(guard(_verb, f"{_group} {_name}"))
    app.add_typer(_within.app, name=_group)
