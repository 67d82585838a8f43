"""The service on Ray Serve: the one file of this room that knows Ray.

One deployment does everything: HTTP, decoding, towers. Each further hop between processes costs 3 to 6 times the rate of small
requests (measured), and a replica that owns all its stages needs no second one to be healthy. Images of concurrent requests meet in
one queue in front of the image tower; a broken image never gets that far, so that no request fails for its neighbour.

`build` is for `serve deploy` and KubeRay; `serving` is for a process that has a Ray.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import LoggingConfig
from torch import Tensor

from sightline.models.load import load_model
from sightline.serve import http
from sightline.serve.engine import Engine
from sightline.serve.schemas import Limits
from sightline.serve.service import Service

APP, REPLICA = "sightline", "Replica"
ANSWERS_WITHIN_S = 60.0


class Options(BaseModel):
    """What is served, by how many replicas, of what size.

    Attributes:
        model: what `models.load.load_model` takes; every node must see it.
        cpus: of one replica; also the threads that its towers use.
        gpus: of one replica, parts of one too; more than 0 puts the towers on the GPU.
        max_batch: images that meet in one pass of the image tower.
        batch_wait_s: how long the first of a batch waits for others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    max_batch: int = Field(default=8, ge=1)
    batch_wait_s: float = Field(default=0.004, ge=0)

    @model_validator(mode="after")
    def check_range(self) -> Options:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}; swap them")
        return self


@serve.ingress()
class Replica:
    """A model, loaded and checked before the first request comes; see `Service` for what it answers."""

    def __init__(self, options: Options) -> None:
        engine = Engine(load_model(options.model, device="cuda" if options.gpus else "cpu"))
        self._service = Service(engine, Limits(), self.embed_image)
        self._batch_sizes: Counter[int] = Counter()
        self.embed_image.set_max_batch_size(options.max_batch)
        self.embed_image.set_batch_wait_timeout_s(options.batch_wait_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return http.build(self._service)

    @serve.batch()
    async def embed_image(self, images: list[Tensor]) -> list[Tensor]:
        """Inputs of concurrent requests → their embeddings. (To callers it takes one and gives one.)"""
        self._batch_sizes[len(images)] += 1
        return list(await self._service.compute(self._service.engine.embed_images, images))

    async def batch_sizes(self) -> dict[int, int]:
        """How many batches of which size this replica has had."""
        return dict(self._batch_sizes)


def build(arguments: Mapping[str, Any]) -> serve.Application:
    """The application of `Options` given by name: `import_path: sightline.serve.app:build` with `args`.

    Raises:
        pydantic.ValidationError: an argument is missing, unknown or out of range.
    """
    options = Options.model_validate(dict(arguments))
    deployment = serve.deployment(
        Replica,
        name=REPLICA,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        # One batch in the tower, one that gathers, and as many again that are decoded; the rest waits in the proxy.
        max_ongoing_requests=4 * options.max_batch,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            # As many requests as fill a batch keep a replica busy; more only queue.
            target_ongoing_requests=options.max_batch,
            upscale_delay_s=5,
            downscale_delay_s=120,
        ),
        # Loading is deterministic: what failed once fails again. One retry is for a node that went away meanwhile.
        max_constructor_retry_count=2,
        # Longer than the longest request, so that a replica that goes away ends what it began.
        graceful_shutdown_timeout_s=60,
        health_check_period_s=5,
    )
    return deployment.bind(options)


@contextmanager
def serving(options: Options, host: str = "127.0.0.1", port: int = 8000, *, own_ray: bool = False) -> Iterator[str]:
    """Serve on the Ray that this process is connected to, as long as the context lasts; gives the URL once it answers.

    At the end the requests that are under way are answered first.

    Args:
        own_ray: this Ray is a local one that ends with the service; it does not grow, and Serve's own processes end with it.

    Raises:
        ValueError: this Ray serves already, has too little for the replicas, or the model does not start.
        OSError: the port is in use, or the host is not one of this machine.
        ConnectionError: the replicas run and nothing answers at the URL.
    """
    before = serve.status()
    if APP in before.applications:
        raise ValueError(
            "this Ray serves a model of Sightline's already; end that first, with Ctrl-C where it runs or `serve shutdown`"
        )
    if own_ray:
        check_resources(options)
    if not before.proxies:
        check_port(host, port)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=host, port=port), logging_config=quiet)
    try:
        try:
            serve.run(build(options.model_dump()), name=APP, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise ValueError(f"the model did not start: {reason() or error}") from error
        url = url_of(host, port)
        await_answer(url)
        yield url
    finally:
        serve.delete(APP)
        # On a cluster Serve may have been there before, with other people's applications.
        if not before.proxies and not own_ray:
            serve.shutdown()


def url_of(host: str, port: int) -> str:
    """Where this machine reaches what listens on that host."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_resources(options: Options) -> None:
    """Refuse replicas that would wait forever for CPUs or GPUs."""
    have = ray.cluster_resources()
    for name, each in (("CPU", options.cpus), ("GPU", options.gpus)):
        need = max(1, options.min_replicas) * each
        if need > have.get(name, 0):
            raise ValueError(
                f"{max(1, options.min_replicas)} × {each:g} {name}s for the replicas are more than the "
                f"{have.get(name, 0):g} of this machine; ask for fewer replicas or fewer {name}s for each"
            )


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody listens on already."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]  # what stands in brackets repeats the address
        raise OSError(f"cannot listen on {host} port {port}: {why}; choose another --port or --host") from None


def await_answer(url: str) -> None:
    """Return when the service says that it is ready; the proxy learns its routes a moment after the replicas run."""
    deadline = time.monotonic() + ANSWERS_WITHIN_S
    while True:
        try:
            if httpx.get(f"{url}/readyz", timeout=10, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            pass  # not listening yet; the deadline tells
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"the replicas run and nothing answers at {url}; where Serve ran before, it keeps its address: "
                "end it with `serve shutdown`, or run this on the cluster's head node"
            )
        time.sleep(0.1)


def reason() -> str:
    """Why the replicas do not start: the sentence at the end of the traceback that Serve keeps for each deployment."""
    deployments = serve.status().applications[APP].deployments
    lines = [line.strip() for line in deployments[REPLICA].message.splitlines()] if REPLICA in deployments else []
    return next((line for line in reversed(lines) if line.partition(":")[0].endswith("Error")), "")
