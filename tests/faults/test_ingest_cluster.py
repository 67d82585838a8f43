"""A cluster of several raylets writes what one does, also when a machine is lost on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.ingest.report import IngestOptions
from tests.corpora import ingest_alone
from tests.faults.kills import DEADLINE_S
from tests.faults.test_ingest_faults import pictures

# A process of its own: a process speaks to one cluster, and this one to the session's.
THREE_RAYLETS = """
import json, os, signal, sys
import ray
from ray.cluster_utils import Cluster
from sightline.pipelines.ingest.job import ingest
from sightline.pipelines.ingest.report import IngestOptions

source, whole, maimed = sys.argv[1:]
agent = {"dashboard_agent_listen_port": 0}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **agent})
ray.init(address=cluster.address, log_to_driver=False)  # now: a driver may attach to any raylet of its machine, and dies with it
machines = [cluster.add_node(num_cpus=1, **agent) for _ in range(2)]
cluster.wait_for_nodes()
options = IngestOptions(shard_rows=6)
nodes = sum(node["Alive"] for node in ray.nodes())
root = ingest(source, whole, options).root

def lose_one(now):
    if now.shards >= 3 and len(machines) == 2:
        os.kill(machines.pop().all_processes["raylet"][0].process.pid, signal.SIGKILL)

print(json.dumps({"nodes": nodes, "roots": [root, ingest(source, maimed, options, lose_one).root], "left": len(machines)}))
ray.shutdown()  # before the cluster's own end, which would take the driver along
cluster.shutdown()
"""


def test_three_raylets_and_the_loss_of_one_change_no_byte(cli_environment: dict[str, str], tmp_path: Path) -> None:
    source = pictures(tmp_path / "source", 120, 128)
    command = [sys.executable, "-c", THREE_RAYLETS, str(source), str(tmp_path / "whole"), str(tmp_path / "maimed")]
    done = subprocess.run(command, env=cli_environment, capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]  # Ray has remarks of its own
    found = json.loads(line)
    alone = Corpus.open(ingest_alone(source, tmp_path / "alone", IngestOptions(shard_rows=6)))
    assert (found["nodes"], found["left"]) == (3, 1)
    assert found["roots"] == [alone.root, alone.root]
