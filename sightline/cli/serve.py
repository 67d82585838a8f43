"""`sightline serve MODEL`."""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.markup import escape

from sightline import settings
from sightline.cli.output import Json, emit, log

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    model: Annotated[
        str, typer.Argument(help="an artifact folder, a local open_clip folder, or a name as ViT-B-32/laion2b_s34b_b79k")
    ],
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[str, typer.Option(help="How many, or MIN:MAX to follow the load.", metavar="N|MIN:MAX")] = "1",
    cpus_per_replica: Annotated[float, typer.Option(min=0.01, help="Also the threads that a replica computes with.")] = 1,
    gpus_per_replica: Annotated[float, typer.Option(min=0, help="0 computes on the CPU; a part of one shares it.")] = 0,
    max_batch: Annotated[int, typer.Option(min=1, help="Images that share one pass; 32 or more suits a GPU.")] = 8,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="auto takes bfloat16 where it is fast and exact enough.")
    ] = "auto",
    keys: Annotated[Path | None, typer.Option(help="Only who has a key of this file may ask; `sightline key` makes them.")] = None,
    allow_origin: Annotated[list[str] | None, typer.Option(help="A web page that may ask from elsewhere; again for more.")] = None,
    image_urls: Annotated[bool, typer.Option("--image-urls", help="Fetch images that requests name by public URLs.")] = False,
    room: Annotated[int, typer.Option(min=1, help="Requests that a replica has under way; more are refused at once.")] = 128,
    deadline: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds after which an answer is of no use.")] = 30,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; without it a local Ray is started.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Ask each endpoint once, print the answers, and end.")] = False,
    json: Json = False,
) -> None:
    """Serve a model: classify, segment and embed images with labels typed at request time.

    Opens a page for people at /, and POST /v1/classify, /v1/segment and /v1/embeddings for programs (documented at /docs). Serves
    until Ctrl-C or SIGTERM, and answers first what is under way. `sightline rollout` changes the model meanwhile. --json prints
    the URL and the model's revision once it answers, or with --check the answers.

    \b
    Example:
      sightline serve runs/clip_demo-1a2b3c4d/artifact
      sightline serve ViT-B-32/laion2b_s34b_b79k --replicas 1:4 --cpus-per-replica 2
      curl -F image=@photo.jpg -F labels="cat, dog" http://127.0.0.1:8000/v1/classify
    """
    low, high = replica_range(replicas)
    from sightline.models.load import load_model
    from sightline.serve.front_door import check_port
    from sightline.serve.keys import read

    known_keys = read(keys) if keys else ()
    if check and known_keys:
        raise ValueError("--check asks without a key; leave --keys out, or ask with curl -H 'Authorization: Bearer KEY'")
    address = address or settings.ray_address()
    own_ray = address is None
    if own_ray:
        check_port(host, port)
    # A model that cannot be loaded is told here, in one line, and not by a replica after three tries.
    known = load_model(model)
    identity = {"model": known.name, "revision": known.revision}
    del known
    if not known_keys and host not in LOOPBACK:
        log.print(f"everybody who reaches {host} may ask; --keys FILE asks for a key")
    log.print(f"starting {identity['model']} ...")
    with front_door(own_ray):
        from sightline.infra.session import ray_session
        from sightline.serve import app, example
        from sightline.serve.client import readable, smoke

        options = app.Options(
            model=str(Path(model).resolve()) if Path(model).exists() else model,
            min_replicas=low,
            max_replicas=high,
            cpus=cpus_per_replica,
            gpus=gpus_per_replica,
            max_batch=max_batch,
            precision=precision,
            room=room,
            deadline_s=deadline,
            keys=known_keys,
            origins=tuple(allow_origin or ()),
            image_urls=image_urls,
            local_only=own_ray and host in LOOPBACK,
        )
        with (
            ray_session(address, debug=settings.debug()),
            app.serving(options, host, port, own_ray=own_ray) as url,
        ):
            if check:
                answers = smoke(url, example.jpeg(), example.LABELS)
                shown = [escape(f"POST /v1/{name}\n{readable(answer)}\n") for name, answer in answers.items()]
                emit({"url": url, **identity, **answers}, json, *shown)
                return
            ray_address = app.ray_address()
            emit({"url": url, "ray": ray_address, **identity}, json, escape(welcome(url, **identity, ray=ray_address)))
            sys.stdout.flush()  # whoever reads through a pipe waits for this line
            log.print("serving until Ctrl-C")
            until_interrupted()
            log.print("\nanswering what is under way, then leaving")


@contextmanager
def front_door(own_ray: bool) -> Iterator[None]:
    """HAProxy in front of the replicas of a local Ray. Whoever imports `ray.serve` does so in here: it reads the settings then."""
    if not own_ray:
        yield
        return
    from sightline.serve.front_door import environment

    # A short path: those of sockets have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="sightline-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        settings.default(environment(Path(folder)))
        yield


def replica_range(text: str) -> tuple[int, int]:
    """`2` → (2, 2); `1:4` → (1, 4)."""
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 <= low <= high or high < 1:
        raise ValueError(f"--replicas {text} is no number of replicas; write 2, or 1:4 for one to four")
    return low, high


def welcome(url: str, model: str, revision: str, ray: str) -> str:
    return f"""{model}, revision {revision[:12]}
  {url}        the page
  {url}/docs   the endpoints
  sightline rollout OTHER_MODEL --address {ray}   changes the model
  curl -F image=@photo.jpg -F labels='cat, dog' {url}/v1/classify"""


def until_interrupted() -> None:
    """Wait for Ctrl-C or SIGTERM, which are how serving ends well."""

    def interrupt(signal_number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # Ray's own handler for SIGTERM takes it for a crash.
    signal.signal(signal.SIGTERM, interrupt)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
