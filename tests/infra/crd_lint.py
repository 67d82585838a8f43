"""What a Kubernetes API server and KubeRay's operator would say of a manifest, without either.

The API server's part comes from the CRD itself: its OpenAPI schema, closed (a key that it does not name is an error,
where the server would drop it silently), its defaults, its keyed lists and its CEL rules. The operator's part is what
KubeRay v1.7 checks only after the object was accepted, or never (a wrong `submissionMode` is accepted, and nothing is
ever submitted), in our words.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import celpy
import celpy.adapter
import yaml
from jsonschema import Draft202012Validator

Schema = Mapping[str, Any]
Crds = Mapping[tuple[str, str], Schema]  # (apiVersion, kind) → the schema of the object

ANNOTATIONS = ("default", "description", "example", "format", "nullable", "title")
NAME_CHARS = {"RayJob": 47, "RayService": 47, "RayCluster": 53}
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
SERVICE_UPGRADES = ("NewCluster", "NewClusterWithIncrementalUpgrade", "None")


def read_crds(folder: Path) -> Crds:
    """The schemas of all served versions that are not deprecated, from a folder of gzipped CRDs."""
    schemas = {}
    for path in sorted(folder.glob("*.yaml.gz")):
        with gzip.open(path, "rt") as stream:
            spec = yaml.load(stream, yaml.CSafeLoader)["spec"]
        for version in spec["versions"]:
            if version["served"] and not version.get("deprecated"):
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                schemas[key] = version["schema"]["openAPIV3Schema"]
    return schemas


def lint(manifest: Mapping[str, Any], crds: Crds) -> list[str]:
    """Everything that is wrong with a manifest, as `path: message`; empty when nothing is."""
    key = (str(manifest.get("apiVersion")), str(manifest.get("kind")))
    if key not in crds:
        return [f"$: no CRD for {key[1]} of {key[0]}; there are {', '.join(map(' '.join, sorted(crds)))}"]
    whole = with_defaults(crds[key], manifest)
    schema = closed(crds[key])
    # The API server checks metadata by itself; a CRD says no more than that it is an object.
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    }
    found = [f"{error.json_path}: {error.message}" for error in Draft202012Validator(schema).iter_errors(whole)]
    if found:
        return found  # the rules below are written for objects of the right shape
    return [*broken_rules(crds[key], whole, "$"), *repeated_keys(crds[key], whole, "$"), *operator_says(whole)]


# ---- the API server ----


def closed(schema: Any) -> Any:
    """The JSON Schema of a CRD's schema in which unknown properties are errors."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        text = {"type": "string"} | ({"pattern": schema["pattern"]} if "pattern" in schema else {})
        return {"anyOf": [{"type": "integer"}, text]}
    out: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "properties":  # names of fields, not keywords: one may be called `default`
            out[keyword] = {name: closed(part) for name, part in value.items()}
        elif keyword not in ANNOTATIONS and not keyword.startswith("x-"):
            out[keyword] = closed(value)
    if "properties" in out and not schema.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    if schema.get("nullable") and "type" in out:
        out["type"] = [out["type"], "null"]
    return out


def with_defaults(schema: Schema, value: Any) -> Any:
    """The value as the server would store it: nulls that mean absence dropped, then defaults filled in."""
    if isinstance(value, list):
        return [with_defaults(schema.get("items", {}), item) for item in value]
    if not isinstance(value, Mapping):
        return value
    fields = schema.get("properties", {})
    kept = {name: item for name, item in value.items() if item is not None or name not in fields or fields[name].get("nullable")}
    defaults = {name: part["default"] for name, part in fields.items() if "default" in part and name not in kept}
    return {name: with_defaults(fields.get(name, {}), item) for name, item in {**kept, **defaults}.items()}


def inside(schema: Schema, value: Any, path: str) -> Iterator[tuple[Schema, Any, str]]:
    """A value and everything in it that has a schema of its own."""
    yield schema, value, path
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from inside(schema.get("items", {}), item, f"{path}[{i}]")
    elif isinstance(value, Mapping):
        fields = schema.get("properties", {})
        for name, item in value.items():
            if name in fields:
                yield from inside(fields[name], item, f"{path}.{name}")


def broken_rules(schema: Schema, value: Any, at: str) -> Iterator[str]:
    """The messages of the CEL rules that do not hold; rules on changes (`oldSelf`) say nothing of a new object."""
    for part, item, path in inside(schema, value, at):
        for rule in part.get("x-kubernetes-validations", []):
            if "oldSelf" not in rule["rule"]:
                environment = celpy.Environment()
                program = environment.program(environment.compile(rule["rule"]))
                if not program.evaluate({"self": celpy.adapter.json_to_cel(item)}):
                    yield f"{path}: {rule.get('message', rule['rule'])}"


def repeated_keys(schema: Schema, value: Any, at: str) -> Iterator[str]:
    """Lists that are maps by some of their items' keys (containers, env, ports), with a key twice."""
    for part, item, path in inside(schema, value, at):
        if part.get("x-kubernetes-list-type") == "map":
            keys = [tuple(entry.get(name) for name in part["x-kubernetes-list-map-keys"]) for entry in item]
            for key in sorted({str(key) for key in keys if keys.count(key) > 1}):
                yield f"{path}: {key} twice"


# ---- the operator ----


def operator_says(manifest: Mapping[str, Any]) -> Iterator[str]:
    """KubeRay's own checks."""
    kind, spec, name = manifest["kind"], manifest["spec"], manifest["metadata"]["name"]
    if kind == "RayCronJob":
        return
    if len(name) > NAME_CHARS[kind] or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"$.metadata.name: at most {NAME_CHARS[kind]} lower-case letters, digits and '-', a letter first"
    if kind == "RayJob":
        yield from job_says(spec)
        if "rayClusterSpec" in spec:
            yield from cluster_says(spec["rayClusterSpec"], "$.spec.rayClusterSpec")
        yield from images_say(spec.get("rayClusterSpec", {}), spec.get("submitterPodTemplate"))
    elif kind == "RayService":
        upgrade = spec.get("upgradeStrategy", {}).get("type", "None")
        if upgrade not in SERVICE_UPGRADES:
            yield f"$.spec.upgradeStrategy.type: {upgrade!r} is none of {', '.join(SERVICE_UPGRADES)}"
        yield from cluster_says(spec["rayClusterConfig"], "$.spec.rayClusterConfig")
        yield from images_say(spec["rayClusterConfig"])
    else:
        yield from cluster_says(spec, "$.spec")
        yield from images_say(spec)


def job_says(spec: Mapping[str, Any]) -> Iterator[str]:
    mode, shutdown = spec["submissionMode"], spec.get("shutdownAfterJobFinishes", False)
    rules = spec.get("deletionStrategy", {}).get("deletionRules")
    if mode not in SUBMISSION_MODES:
        yield f"$.spec.submissionMode: {mode!r} is none of {', '.join(SUBMISSION_MODES)}: nothing would be submitted"
    if ("rayClusterSpec" in spec) == ("clusterSelector" in spec):
        yield "$.spec: give one of rayClusterSpec and clusterSelector"
    if spec.get("ttlSecondsAfterFinished") and not shutdown:
        yield "$.spec.ttlSecondsAfterFinished: needs shutdownAfterJobFinishes: true"
    if spec.get("suspend") and not shutdown:
        yield "$.spec.suspend: needs shutdownAfterJobFinishes: true"
    if rules and shutdown:
        yield "$.spec.deletionStrategy.deletionRules: exclude shutdownAfterJobFinishes"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"$.spec.{name}: must be positive"
    for name in ("backoffLimit", "ttlSecondsAfterFinished"):
        if spec.get(name, 0) < 0:
            yield f"$.spec.{name}: must not be negative"
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if name in spec:
                yield f"$.spec.{name}: not in SidecarMode"
        head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
        if head.get("restartPolicy", "Never") != "Never":
            yield "$.spec.rayClusterSpec.headGroupSpec: SidecarMode needs restartPolicy Never or none"
    if mode == "InteractiveMode" and spec.get("backoffLimit"):
        yield "$.spec.backoffLimit: not in InteractiveMode"
    if "submitterPodTemplate" in spec:
        yield from pod_says(spec["submitterPodTemplate"], "$.spec.submitterPodTemplate")


def cluster_says(cluster: Mapping[str, Any], path: str) -> Iterator[str]:
    version = cluster.get("rayVersion", "")
    autoscaling = cluster.get("enableInTreeAutoscaling", False)
    # v2 has been the default since Ray 2.47.
    autoscaler_v2 = autoscaling and cluster.get("autoscalerOptions", {}).get("version", "v2") == "v2"
    if cluster.get("authOptions", {}).get("mode") == "token" and numbers(version) < (2, 52):
        yield f"{path}.authOptions: tokens need rayVersion 2.52 or later, not {version!r}"
    groups = [("headGroupSpec", cluster["headGroupSpec"])]
    groups += [(f"workerGroupSpecs[{i}]", group) for i, group in enumerate(cluster.get("workerGroupSpecs", []))]
    for name, group in groups:
        where, start = f"{path}.{name}", group.get("rayStartParams", {})
        yield from pod_says(group["template"], f"{where}.template")
        if "labels" in start:
            yield f"{where}.rayStartParams: labels belong to the group's own field"
        if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(start):
            yield f"{where}: resources both here and in rayStartParams"
        if autoscaler_v2 and group["template"].get("spec", {}).get("restartPolicy", "Never") != "Never":
            yield f"{where}: the autoscaler (v2) needs restartPolicy Never or none"
        if name != "headGroupSpec":
            yield from replicas_say(group, where, autoscaling)


def replicas_say(group: Mapping[str, Any], where: str, autoscaling: bool) -> Iterator[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if not autoscaling and (least is None or most is None):
        yield f"{where}: minReplicas and maxReplicas are needed without autoscaling"
    if least is not None and most is not None and not 0 <= least <= group.get("replicas", least) <= most:
        yield f"{where}: 0 ≤ minReplicas ≤ replicas ≤ maxReplicas does not hold"


def pod_says(template: Mapping[str, Any], path: str) -> Iterator[str]:
    """What the API server says only when the operator creates the pod, long after the manifest was accepted."""
    spec = template.get("spec", {})
    containers = [*spec.get("initContainers", []), *spec.get("containers", [])]
    if not spec.get("containers"):
        yield f"{path}.spec.containers: at least one"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in containers:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{path}: {container['name']} mounts {mount['name']!r}, which is none of its volumes"


def images_say(cluster: Mapping[str, Any], submitter: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Nodes of two Ray versions do not join, so each Ray image's tag names the version that `rayVersion` claims."""
    version = cluster.get("rayVersion")
    templates: Sequence[Any] = [submitter, cluster.get("headGroupSpec", {}).get("template")]
    templates = [*templates, *(group["template"] for group in cluster.get("workerGroupSpecs", []))]
    for template in templates:
        image = ((template or {}).get("spec", {}).get("containers") or [{}])[0].get("image")
        tag = (image or "").rpartition(":")[2]
        if version and image and version not in re.findall(r"\d+\.\d+\.\d+", tag):
            yield f"$: image {image} does not name rayVersion {version}"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
