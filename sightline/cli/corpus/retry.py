"""`sightline corpus retry`."""

from __future__ import annotations

from typing import Annotated

import typer

from sightline.cli import output
from sightline.cli.downloads import AllowLoopback, IgnoreOptOut, PerHost, Retries, Timeout, UserAgent, fetch_options
from sightline.cli.ingest import Address, Cpus, complete, show
from sightline.cli.output import Json
from sightline.fetch.result import FetchOptions


def retry(
    corpus: Annotated[str, typer.Argument(metavar="CORPUS", help="A corpus that `sightline ingest` wrote.")],
    code: Annotated[
        list[str] | None, typer.Option(help="stage/code of the errors to retry, may be repeated; default: all.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Where the inputs are now; by default where they were.")] = None,
    timeout: Timeout = FetchOptions.total_timeout_s,
    per_host: PerHost = FetchOptions.per_host,
    retries: Retries = FetchOptions.retries,
    user_agent: UserAgent = FetchOptions.user_agent,
    ignore_opt_out: IgnoreOptOut = False,
    allow_loopback: AllowLoopback = False,
    address: Address = None,
    cpus: Cpus = None,
    json: Json = False,
) -> None:
    """Take up again what an ingest rejected: files that were mended since, servers that were down.

    What works now joins the corpus as a new generation; what fails again keeps its reason. Each input counts once. Where nothing
    is rejected so, the corpus stays as it is.

    \b
    Example:
      sightline corpus retry corpora/web --code fetch/timeout --code fetch/http_status
      sightline corpus retry corpora/photos --source photos-mended/
    """
    from sightline.pipelines.ingest.prepare import Prepared, prepare_retry

    fetch = fetch_options(timeout, per_host, retries, user_agent, ignore_opt_out, allow_loopback)
    prepared = prepare_retry(corpus, source, code or [], fetch)
    taken = prepared.retried if isinstance(prepared, Prepared) else prepared.rejected_by_code
    for none in sorted(set(code or []) - set(taken)):
        output.log.print(f"nothing is rejected as {none}")
    show(complete(prepared, address, cpus), corpus, json)
