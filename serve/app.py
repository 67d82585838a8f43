"""The service on Ray Serve: the one file of this room that knows Ray.

One deployment does everything: HTTP, decoding, towers. Each further hop between processes costs 3 to 6 times the rate of small
requests (measured), and a replica that owns all its stages needs no second one to be healthy. What the replicas have in common
(label sets, the plan of a rollout, figures) lies in Ray's own key-value store, so no replica and no actor can take it along.

`build` is for `serve deploy` and KubeRay; `serving` is for a process that has a Ray.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import ray
import torch
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ray import serve
from ray.experimental import internal_kv
from ray.serve.config import AutoscalingConfig, HTTPOptions
from ray.serve.schema import LoggingConfig

from sightline.serve import http
from sightline.serve.front_door import check_port
from sightline.serve.guard import LOG, Front
from sightline.serve.keys import ApiKey
from sightline.serve.limits import Limits
from sightline.serve.metrics import PUBLISH_EVERY_S, Metrics, publish
from sightline.serve.precision import Precision
from sightline.serve.rollout import POLL_S, Follower, Rollouts
from sightline.serve.served import Served, load
from sightline.serve.service import Batching, Service

APP, REPLICA = "sightline", "Replica"
NAMESPACE = b"sightline-serve"
ANSWERS_WITHIN_S = 60.0


class GcsBoard:
    """A board in the key-value store of the Ray that this process is connected to; it lives as long as the cluster's head."""

    def get(self, name: str) -> bytes | None:
        value: bytes | None = internal_kv._internal_kv_get(name, namespace=NAMESPACE)
        return value

    def put(self, name: str, value: bytes, *, overwrite: bool = True) -> None:
        internal_kv._internal_kv_put(name, value, overwrite=overwrite, namespace=NAMESPACE)

    def delete(self, name: str) -> bool:
        return bool(internal_kv._internal_kv_del(name, namespace=NAMESPACE))

    def names(self, prefix: str) -> list[str]:
        return sorted(name.decode() for name in internal_kv._internal_kv_list(prefix, namespace=NAMESPACE))

    def clear(self) -> None:
        for name in self.names(""):
            self.delete(name)


class Options(BaseModel):
    """What is served, by how many replicas, of what size, to whom.

    Attributes:
        model: what `models.load.load_model` takes; every node must see it.
        cpus: of one replica; also the threads that its towers use.
        gpus: of one replica, parts of one too; more than 0 puts the towers on the GPU.
        max_batch: images that meet in one pass of the image tower.
        batch_wait_s: how long the first of a batch waits for others although the tower is free.
        precision: of the image tower (see precision.py).
        room: requests that one replica has under way at most; more are refused at once.
        deadline_s: how long an answer is of use.
        keys: who may ask; without any, everybody.
        origins: web pages that may ask from elsewhere.
        image_urls: whether an image may be named by a URL.
        local_only: only this machine may ask.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=1, ge=1)
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    max_batch: int = Field(default=8, ge=1)
    batch_wait_s: float = Field(default=0, ge=0)
    precision: Precision = "auto"
    room: int = Field(default=128, ge=1)
    deadline_s: float = Field(default=30, gt=0, le=600)
    keys: tuple[ApiKey, ...] = ()
    origins: tuple[str, ...] = ()
    image_urls: bool = False
    local_only: bool = False

    @model_validator(mode="after")
    def check_range(self) -> Options:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is more than max_replicas {self.max_replicas}; swap them")
        return self


@serve.ingress()
class Replica:
    """A model, loaded and checked before the first request comes; see `Service` for what it answers."""

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(max(1, int(options.cpus)))
        log_requests()
        name = serve.get_replica_context().replica_id.unique_id
        self._options, self._board, self._metrics = options, GcsBoard(), Metrics(name)
        self._load = partial(load_for, options)
        rollouts, having = Rollouts(self._board), {}
        plan = rollouts.plan()
        if plan is None or plan.base != options.model:  # the first replica of all, or of another configuration
            first = self._load(options.model)
            having = {first.artifact: first}
            plan = rollouts.start(options.model, first.artifact)
        wanted = {
            part.artifact: (having.get(part.artifact) or self._load(part.model, part.artifact), part.part) for part in plan.parts
        }
        main = max(wanted.values(), key=lambda one: one[1])[0]
        self._service = Service(
            main,
            Limits(image_urls=options.image_urls),
            self._board,
            self._metrics,
            Batching(options.max_batch, options.batch_wait_s),
        )
        self._service.serve(wanted)
        self._follower = Follower(rollouts, name, self._load, self._service.serve, [served for served, _ in wanted.values()], plan)
        for work, every_s in ((self._follow, POLL_S), (self._publish, PUBLISH_EVERY_S)):
            threading.Thread(target=forever, args=(work, every_s), daemon=True).start()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        options = self._options
        here = frozenset({"127.0.0.1", "::1", ray.util.get_node_ip_address()})
        front = Front(options.keys, options.origins, options.room, options.deadline_s, here if options.local_only else None)
        return http.build(self._service, front)

    def _follow(self) -> None:
        """Come to the plan; loading a model may take minutes."""
        if change := self._follower.follow():
            change()

    def _publish(self) -> None:
        """Say that this replica lives, also while it loads, and how it does."""
        self._follower.report()
        publish(self._metrics, self._board)


def forever(work: Callable[[], None], every_s: float) -> None:
    """Do it again and again, for as long as the process lives."""
    while True:
        try:
            work()
        except Exception:  # mostly the store, which may be away for a while (a head that restarts); what is served goes on
            LOG.exception("%s failed; trying again", work.__name__.strip("_"))
        time.sleep(every_s)


def load_for(options: Options, model: str, pinned: str | None = None) -> Served:
    return load(model, options.precision, "cuda" if options.gpus else "cpu", pinned)


def log_requests() -> None:
    """Each request's line goes to the replica's own log, which Ray keeps among those of its session."""
    if not LOG.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOG.addHandler(handler)
        LOG.setLevel(logging.INFO)
        LOG.propagate = False


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
        # More than there is room for, so that it is the replica that refuses, with a problem document that says when to ask again.
        max_ongoing_requests=options.room + 64,
        max_queued_requests=options.room,
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            # As many requests as fill a batch keep a replica busy; more only queue.
            target_ongoing_requests=options.max_batch,
            upscale_delay_s=3,
            downscale_delay_s=60,
            look_back_period_s=12,
        ),
        # Loading is deterministic: what failed once fails again. One retry is for a node that went away meanwhile.
        max_constructor_retry_count=2,
        # Longer than the longest request, so that a replica that goes away ends what it began; and an end, should clients not stop.
        graceful_shutdown_timeout_s=options.deadline_s + 10,
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
    GcsBoard().clear()
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
        GcsBoard().clear()
        # On a cluster Serve may have been there before, with other people's applications.
        if not before.proxies and not own_ray:
            serve.shutdown()


def ray_address() -> str:
    """Where other processes reach the Ray that this one is connected to."""
    return str(ray.get_runtime_context().gcs_address)


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
