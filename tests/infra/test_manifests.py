"""The Kubernetes manifests: what the API server and KubeRay would refuse, and what they would accept and get wrong."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import sightline
from sightline.cli.submit import check
from tests.conftest import CHECKOUT
from tests.infra.crd_lint import Crds, lint, read_crds

FOLDER = CHECKOUT / "infra" / "kubernetes"
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml"))

Manifest = dict[str, Any]


def read(name: str) -> Manifest:
    manifest: Manifest = yaml.safe_load((FOLDER / name).read_text())
    return manifest


def pinned(package: str) -> str:
    [version] = re.findall(rf"^{package}==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    return str(version)


def cluster(manifest: Manifest) -> Manifest:
    spec = manifest["spec"]
    found: Manifest = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return found


def pods(manifest: Manifest) -> list[Manifest]:
    """The specs of every pod that comes of a manifest."""
    ray = cluster(manifest)
    templates = [ray["headGroupSpec"]["template"], *(group["template"] for group in ray["workerGroupSpecs"])]
    templates += [manifest["spec"]["submitterPodTemplate"]] if "submitterPodTemplate" in manifest["spec"] else []
    return [template["spec"] for template in templates]


@pytest.fixture(scope="module")
def crds(shared_data: Path) -> Crds:
    if not (shared_data / "kuberay_crds").is_dir():
        pytest.skip("../shared/data/kuberay_crds is absent: the schemas of KubeRay are needed")
    return read_crds(shared_data / "kuberay_crds")


def test_there_is_a_job_for_training_and_a_service_for_serving() -> None:
    assert {read(name)["kind"] for name in MANIFESTS} == {"RayJob", "RayService"}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_api_server_and_kuberay_find_nothing_wrong(name: str, crds: Crds) -> None:
    assert lint(read(name), crds) == []


def head(manifest: Manifest) -> Manifest:
    spec: Manifest = cluster(manifest)["headGroupSpec"]["template"]["spec"]
    return spec


def put(**fields: Any) -> Callable[[Manifest], None]:
    return lambda manifest: manifest["spec"].update(fields)


def unmounted(manifest: Manifest) -> None:
    head(manifest)["volumes"] = []


def no_shutdown(manifest: Manifest) -> None:
    del manifest["spec"]["shutdownAfterJobFinishes"]


FAULTS: dict[str, tuple[Callable[[Manifest], None], str]] = {
    "an unknown field": (put(backofLimit=1), "'backofLimit' was unexpected"),
    "an unknown field deep in a pod": (lambda m: head(m).update(terminationGracePeriod=1), "'terminationGracePeriod'"),
    "a wrong type": (put(ttlSecondsAfterFinished="600"), "not of type 'integer'"),
    "no quantity": (
        lambda m: head(m)["containers"][0]["resources"].update(limits={"memory": "16 GB"}),
        "is not valid under any of the given schemas",
    ),
    "a broken CEL rule": (put(managedBy="me"), "managedBy field value must be either"),
    "a missing field": (lambda m: cluster(m).pop("headGroupSpec"), "'headGroupSpec' is a required property"),
    "a deprecated version": (lambda m: m.update(apiVersion="ray.io/v1alpha1"), "no CRD for RayJob of ray.io/v1alpha1"),
    "a variable twice": (lambda m: head(m)["containers"][0]["env"].append({"name": "HOME"}), "('HOME',) twice"),
    "an unknown mode": (put(submissionMode="K8SJobMode"), "nothing would be submitted"),
    "a long name": (lambda m: m["metadata"].update(name="x" * 48), "at most 47"),
    "a name with a dot": (lambda m: m["metadata"].update(name="a.b"), "at most 47"),
    "a TTL for a cluster that stays": (no_shutdown, "needs shutdownAfterJobFinishes"),
    "two ways to clean up": (
        put(deletionStrategy={"deletionRules": [{"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}]}),
        "exclude shutdownAfterJobFinishes",
    ),
    "a sidecar with a submitter": (put(submissionMode="SidecarMode"), "submitterConfig: not in SidecarMode"),
    "another Ray than the image's": (lambda m: cluster(m).update(rayVersion="2.59.0"), "does not name rayVersion"),
    "tokens for an old Ray": (lambda m: cluster(m).update(rayVersion="2.51.0"), "tokens need rayVersion 2.52"),
    "restarts under the autoscaler": (
        lambda m: (cluster(m).update(enableInTreeAutoscaling=True), head(m).update(restartPolicy="Always")),
        "needs restartPolicy Never",
    ),
    "more at least than at most": (
        lambda m: cluster(m)["workerGroupSpecs"][0].update(minReplicas=9),
        "0 ≤ minReplicas ≤ replicas ≤ maxReplicas",
    ),
    "a mount of nothing": (unmounted, "mounts 'scratch', which is none of its volumes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_linter_finds(fault: str, crds: Crds) -> None:
    plant, message = FAULTS[fault]
    manifest = copy.deepcopy(read("rayjob-train.yaml"))
    plant(manifest)
    assert any(message in problem for problem in lint(manifest, crds)), lint(manifest, crds)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_runs_the_one_image_of_this_version_and_the_pinned_ray(name: str) -> None:
    manifest = read(name)
    images = {container["image"] for pod in pods(manifest) for container in pod["containers"]}
    assert images == {f"sightline:{sightline.__version__}-ray{pinned('ray')}"}
    assert cluster(manifest)["rayVersion"] == pinned("ray")


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_pod_would_be_admitted_as_restricted(name: str) -> None:
    for pod in pods(read(name)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize("name", MANIFESTS)
def test_only_an_autoscaling_head_gets_a_service_account_token(name: str) -> None:
    manifest = read(name)
    for pod in pods(manifest):
        wanted = pod is head(manifest) and cluster(manifest).get("enableInTreeAutoscaling", False)
        assert pod.get("automountServiceAccountToken", True) is wanted


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_hands_over_before_the_pod_is_killed_and_before_the_machine_is_taken(name: str) -> None:
    shortest_notice_s = 120  # AWS; the manifests say to keep the order where it is shorter
    for group in cluster(read(name))["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
        drain_s = int(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert drain_s < pod["terminationGracePeriodSeconds"] < shortest_notice_s


def test_the_jobs_command_is_one_that_the_command_line_takes() -> None:
    program, *command = shlex.split(read("rayjob-train.yaml")["spec"]["entrypoint"])
    assert program == "sightline"
    check(command)


def test_the_jobs_recipe_takes_its_settings() -> None:
    from sightline.pipelines.train.spec import override
    from sightline.recipes import find_recipe

    _, _, recipe, *rest = shlex.split(read("rayjob-train.yaml")["spec"]["entrypoint"])
    settings = [word for word in rest if "=" in word and not word.startswith("-")]
    assert settings
    override(find_recipe(recipe), settings)


def test_the_job_asks_for_as_many_workers_as_there_are_gpus() -> None:
    manifest = read("rayjob-train.yaml")
    words = shlex.split(manifest["spec"]["entrypoint"])
    [group] = cluster(manifest)["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert int(words[words.index("--workers") + 1]) == group["replicas"] * int(resources["limits"]["nvidia.com/gpu"])
    assert "--gpus" in words


def serve_config() -> Manifest:
    config: Manifest = yaml.safe_load(read("rayservice.yaml")["spec"]["serveConfigV2"])
    return config


def test_the_service_is_one_that_ray_serve_takes() -> None:
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(serve_config())


def test_the_services_import_path_makes_an_application_of_its_arguments() -> None:
    [application] = serve_config()["applications"]
    module, name = application["import_path"].split(":")
    built = getattr(importlib.import_module(module), name)(application["args"])
    assert type(built).__name__ == "Application"


def test_the_services_replicas_fit_its_nodes() -> None:
    [arguments] = [application["args"] for application in serve_config()["applications"]]
    [group] = cluster(read("rayservice.yaml"))["workerGroupSpecs"]
    requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    on_a_node = min(int(requests["cpu"]) // arguments["cpus"], int(requests["nvidia.com/gpu"]) // arguments["gpus"])
    assert on_a_node >= 1
    assert group["minReplicas"] * on_a_node >= arguments["min_replicas"]
    assert group["maxReplicas"] * on_a_node == arguments["max_replicas"]


def test_the_data_is_where_the_volume_is_mounted() -> None:
    words = shlex.split(read("rayjob-train.yaml")["spec"]["entrypoint"])
    [model] = [application["args"]["model"] for application in serve_config()["applications"]]
    paths = [word.removeprefix("corpus=") for word in words if "/" in word]
    for path in [*paths, model]:
        assert path.startswith("/data/")
    for name in MANIFESTS:
        for pod in pods(read(name))[: -1 if "job" in name else None]:  # the submitter touches no data
            assert "/data" in [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]


def test_haproxy_repeats_on_a_cluster_what_it_repeats_on_one_machine() -> None:
    from sightline.serve.front_door import settings

    for group in [cluster(read("rayservice.yaml"))["headGroupSpec"], *cluster(read("rayservice.yaml"))["workerGroupSpecs"]]:
        [container] = group["template"]["spec"]["containers"]
        given = {variable["name"]: variable["value"] for variable in container["env"]}
        drain = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"  # load balancers of a cluster take longer to hear of it
        assert given["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert {name: given[name] for name in settings() if name != drain} == {k: v for k, v in settings().items() if k != drain}
        assert float(given[drain]) >= float(settings()[drain])
