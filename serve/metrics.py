"""What Prometheus is told, at /metrics: of all replicas, whichever of them answers.

A scrape reaches one replica, and the next scrape another, so counters of one would jump. Each replica therefore lays its own
figures on the board every few seconds, and whoever is asked shows everybody's, with a label `replica`. A replica that is gone is
left out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import pydantic_core
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from sightline.serve.board import Board

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "metrics/"
PUBLISH_EVERY_S, GONE_AFTER_S = 2.0, 15.0
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The figures of one replica; attributes are what may be counted, observed or set."""

    def __init__(self, replica: str = "alone") -> None:
        self.replica = replica
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "requests that were answered", "path", "status")
        self.request_seconds = self._histogram("request_seconds", "from the request's arrival to its answer's end", SECONDS, "path")
        self.in_flight = self._gauge("in_flight", "requests under way")
        self.refused = self._counter("refused", "requests that were refused at the door, and images among several", "reason")
        self.queue = self._gauge("queue", "images that wait for the image tower")
        self.batch_size = self._histogram("batch_size", "images of one pass of the image tower", BATCHES)
        self.stage_seconds = self._histogram(
            "stage_seconds", "fetch, decode, queue, image_tower, text_tower, segment, encode", SECONDS, "stage"
        )
        self.label_cache = self._counter("label_cache", "labels that were remembered, or passed the text tower", "result")
        self.label_sets = self._counter("label_set_requests", "requests by registered label set", "label_set")
        self.models = self._counter("model_requests", "requests by the model that answered", "model", "artifact")
        self.share = self._gauge("model_share", "share of the requests that name no model", "model", "artifact")

    def text(self) -> str:
        """This replica's own figures."""
        return generate_latest(self.registry).decode()

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"sightline_{name}", what, labels, registry=self.registry)

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(f"sightline_{name}", what, labels, registry=self.registry)

    def _histogram(self, name: str, what: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"sightline_{name}", what, labels, registry=self.registry, buckets=buckets)


def publish(metrics: Metrics, board: Board) -> None:
    """Lay this replica's figures on the board."""
    board.put(PREFIX + metrics.replica, pydantic_core.to_json({"at": time.time(), "text": metrics.text()}))


def everybodys(metrics: Metrics, board: Board) -> str:
    """This replica's figures as they are, and the others' as they last laid them on the board."""
    texts = {metrics.replica: metrics.text()}
    for name in board.names(PREFIX):
        replica, value = name.removeprefix(PREFIX), board.get(name)
        if value is None or replica == metrics.replica:
            continue
        published = pydantic_core.from_json(value)
        if time.time() - published["at"] < GONE_AFTER_S:
            texts[replica] = published["text"]
        else:
            board.delete(name)
    return merged(texts)


def merged(texts: Mapping[str, str]) -> str:
    """Expositions of several replicas as one, each sample with the label `replica`."""
    registry = CollectorRegistry()
    registry.register(Merged(texts))
    return generate_latest(registry).decode()


class Merged:
    """A collector of what others have collected."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self._texts.items():
            for family in text_string_to_metric_families(text):
                if family.name.endswith("_created"):
                    continue
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    whole.add_sample(sample.name, sample.labels | {"replica": replica}, sample.value)
        yield from families.values()
