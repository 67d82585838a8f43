"""The options of every verb that downloads."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.fetch.result import FetchOptions

Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds for a URL, its redirects and retries included.")]
PerHost = Annotated[
    int,
    typer.Option(min=1, help="Connections to one host at a time, of all workers together; so no more workers than these download."),
]
Retries = Annotated[int, typer.Option(min=0, help="Further attempts at a URL whose failure may pass.")]
UserAgent = Annotated[str, typer.Option(help="What downloads call themselves.")]
IgnoreOptOut = Annotated[bool, typer.Option("--ignore-opt-out", help="Download in spite of robots.txt and X-Robots-Tag.")]
AllowLoopback = Annotated[bool, typer.Option("--allow-loopback", help="Let URLs lead to this machine.")]


def fetch_options(
    timeout: float, per_host: int, retries: int, user_agent: str, ignore_opt_out: bool, allow_loopback: bool
) -> FetchOptions:
    """The options as the job takes them.

    Raises:
        ValueError: one is out of range.
    """
    return FetchOptions(
        total_timeout_s=timeout,
        per_host=per_host,
        retries=retries,
        user_agent=user_agent,
        allow_loopback=allow_loopback,
        respect_robots_txt=not ignore_opt_out,
        respect_opt_out=not ignore_opt_out,
    )
