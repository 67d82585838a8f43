"""`sightline ingest`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline import settings
from sightline.cli import output
from sightline.cli.bars import ingest_bar
from sightline.cli.downloads import AllowLoopback, IgnoreOptOut, PerHost, Retries, Timeout, UserAgent, fetch_options
from sightline.cli.output import Json
from sightline.fetch.result import FetchOptions

if TYPE_CHECKING:  # heavy
    from sightline.pipelines.ingest.prepare import Prepared
    from sightline.pipelines.ingest.report import IngestReport

# Copies, because their modules load numpy and Arrow, which --help need not wait for. A test compares them.
MEGAPIXELS = 64.0
KINDS = "corpus, webdataset, coco, flickr_tokens, parquet, url_list, captions_table, mask_folder, class_folder"
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; by default a local Ray.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPUs of a local Ray; by default all.")]


def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, a file, a pattern of files, or a URL of one.")],
    dest: Annotated[str, typer.Argument(metavar="DEST", help="The corpus: a fresh folder or URL, or one that this command began.")],
    kind: Annotated[str | None, typer.Option(help=f"The kind of source, found out by default: {KINDS}.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Add the inputs whose keys DEST has never seen.")] = False,
    resize: Annotated[str, typer.Option(help="keep, shortest=256, longest=512, exact=WxH, centre_crop=WxH or pad=WxH.")] = "keep",
    encode: Annotated[str, typer.Option(help="original, jpeg:90, png or webp:80.")] = "original",
    denoise: Annotated[
        float | None, typer.Option(min=0, max=255, help="σ of noise to take out by non-local means, of 0 to 255; say 10.")
    ] = None,
    max_megapixels: Annotated[
        float, typer.Option(min=0.001, max=178, help="Larger images are refused, from their header; Pillow's own limit is 178.")
    ] = MEGAPIXELS,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Inputs per shard; by default about 64 shards.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rows' order.")] = 0,
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
    """Write a corpus from images and captions, on Ray Data.

    SOURCE is a folder with a captions table (captions.csv, .jsonl or .parquet with columns image and caption or
    captions; perhaps label, mask, split ...), a folder per class, images/ and masks/, COCO or Flickr annotations,
    WebDataset tars, Parquet or Arrow files with image bytes, a list of URLs, or another corpus; here, or at any
    URL that fsspec reads (s3://, gs://, hf://). DEST gets Arrow shards, a Parquet sidecar, a manifest with a root
    hash, and a table of whatever could not be read, with the reason. The same command again finishes what was
    interrupted.

    \b
    Example:
      sightline ingest photos/ corpora/photos
      sightline ingest photos/captions.csv corpora/photos --json
      sightline ingest photos/ s3://bucket/corpora/photos --resize shortest=256 --encode jpeg:90
      sightline ingest scans/ corpora/scans --resize longest=512 --denoise 10
      sightline ingest urls.parquet corpora/web --per-host 2 --timeout 20
      sightline ingest more-photos/ corpora/photos --append
    """
    from sightline.pipelines.ingest.prepare import prepare, prepare_append
    from sightline.pipelines.ingest.report import IngestOptions
    from sightline.pipelines.ingest.resize import Resize

    options = IngestOptions(
        kind=kind,
        shard_rows=shard_rows,
        seed=seed,
        resize=Resize.parse(resize, encode, denoise or 0.0),
        fetch=fetch_options(timeout, per_host, retries, user_agent, ignore_opt_out, allow_loopback),
        max_pixels=round(max_megapixels * 1e6),
    )
    prepared = (prepare_append if append else prepare)(source, dest, options)
    show(complete(prepared, address, cpus), dest, json)


def complete(prepared: Prepared | IngestReport, address: str | None, cpus: int | None) -> IngestReport:
    """Run what is left to do on Ray, which takes seconds to start: mistakes and finished corpora need not wait for it."""
    from sightline.pipelines.ingest.report import IngestReport

    report = prepared if isinstance(prepared, IngestReport) else prepared.report
    if report is not None or isinstance(prepared, IngestReport):
        assert report is not None
        output.log.print("there is nothing to do; these are the figures of the run that ended it")
        return report
    if prepared.change != "ingest":
        output.log.print(f"{prepared.change}: {prepared.plan.rows:,} inputs")
    from sightline.infra.session import ray_session
    from sightline.pipelines.ingest.job import run

    with ray_session(address or settings.ray_address(), num_cpus=cpus, debug=settings.debug()), ingest_bar() as progress:
        report = run(prepared, progress)
    if report.generation == prepared.onto:
        output.log.print("none of them could be taken; the corpus is as it was")
    return report


def show(report: IngestReport, dest: str, json: bool) -> None:
    result: dict[str, Any] = {
        "seen": report.seen,
        "kept": report.kept,
        "filtered": report.filtered,
        "errors": report.errors,
        **({"forgotten": report.forgotten} if report.forgotten else {}),
        "root": report.root,
        "images_per_s": report.images_per_s,
        "seconds": report.seconds,
        "corpus": dest,
        "rejected": report.rejected_by_code,
    }
    shown = {name: value for name, value in result.items() if name != "rejected"}
    output.emit(result, json, output.facts(shown), *rejections(report, dest))
    if not report.kept:
        output.log.print(f"nothing was kept of {report.seen:,} inputs; give the next try a fresh DEST, or remove this one")
        raise typer.Exit(1)


def rejections(report: IngestReport, dest: str) -> list[str]:
    """What was rejected: for each code how often, and one input with what was wrong with it."""
    from sightline.pipelines.ingest.report import examples

    if not report.rejected_by_code:
        return []
    found = examples(dest)
    return ["", *(f"{count:>10,}  {code:<24} {found.get(code, '')}" for code, count in report.rejected_by_code.items())]
