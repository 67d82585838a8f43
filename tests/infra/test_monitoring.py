"""The dashboard asks for what the service tells, by the names and labels that it has."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sightline.serve.metrics import Metrics, merged
from tests.conftest import CHECKOUT

FOLDER = CHECKOUT / "infra" / "monitoring"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
TARGETS = [(panel["title"], target) for panel in DASHBOARD["panels"] for target in panel["targets"]]
FUNCTIONS = {"histogram_quantile", "sum", "max", "rate", "by"}


def told() -> dict[str, set[str]]:
    """Every sample that a service can have, with its labels."""
    metrics = Metrics("r")
    for one in vars(metrics).values():
        names = getattr(one, "_labelnames", ())
        if names:
            one.labels(*["x"] * len(names))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(merged({"r": metrics.text()})):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize(("title", "target"), TARGETS, ids=[f"{title} {target['refId']}" for title, target in TARGETS])
def test_every_query_names_metrics_and_labels_that_there_are(title: str, target: dict[str, Any]) -> None:
    known, query = told(), target["expr"]
    names = set(re.findall(r"sightline_\w+", query))
    assert names and names <= known.keys()
    labels = set.intersection(*(known[name] for name in names))
    asked = {label.strip() for group in re.findall(r"by \(([^)]*)\)", query) for label in group.split(",")}
    asked |= set(re.findall(r"[{,](\w+)[=!]", query))
    assert asked <= labels
    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= asked
    assert set(re.findall(r"(\w+)\s*\(", query)) <= FUNCTIONS


def test_panels_do_not_lie_on_each_other() -> None:
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_what_no_panel_shows_is_known() -> None:
    shown = {name for _, target in TARGETS for name in re.findall(r"sightline_\w+?(?=_bucket|_sum|_count|\b)", target["expr"])}
    families = {family.name for family in text_string_to_metric_families(merged({"r": Metrics("r").text()}))}
    assert families - {name.removesuffix("_total") for name in shown} == set()


def test_prometheus_is_told_to_scrape_the_service() -> None:
    [job] = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["127.0.0.1:8000"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
