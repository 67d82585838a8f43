"""A run on a cluster of its own whose machines come and go: 4 workers, two of them preempted with notice, then one more machine.

    python -m tests.faults.elastic CORPUS FOLDER STEPS

A process of its own, because a process speaks to one cluster. Prints one JSON object: what was said, and what the run came to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

NOTICE_S = 30
RAY = (sys.executable, "-m", "ray.scripts.scripts")


def main(corpus_path: str, folder: str, steps: int) -> None:
    # Ray waits for a whole worker group to start; on machines that are gone it would wait a minute.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    import ray
    from ray.cluster_utils import Cluster

    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.train import job
    from sightline.pipelines.train.spec import Launch
    from tests.pipelines.test_loop import spec_for

    agent = {"dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **agent})
    ray.init(address=cluster.address, log_to_driver=False)  # now: a driver may attach to any raylet, and dies with it
    machines = [cluster.add_node(num_cpus=1, **agent) for _ in range(4)]
    cluster.wait_for_nodes()
    corpus = Corpus.open(corpus_path)
    spec = replace(spec_for(corpus), steps=steps)
    launch = Launch(Path(folder) / "run", workers=4, min_workers=1, checkpoint_every=25, retries=10)
    said: list[str] = []

    def preempt(node: Any) -> None:
        """What a provider does with a spot machine: a notice, and then it is gone."""
        order = ["drain-node", "--address", cluster.address, "--node-id", node.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        more = ["--reason-message", "spot", "--deadline-remaining-seconds", str(NOTICE_S)]
        subprocess.run([*RAY, *order, *more], check=True, capture_output=True)
        time.sleep(NOTICE_S)
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    threads = [threading.Thread(target=preempt, args=(machine,)) for machine in machines[:2]]
    newcomers: list[subprocess.Popen[bytes]] = []

    def show(step: Any) -> None:
        if step.step == 20 and threads[0].ident is None:
            for thread in threads:
                thread.start()
        if step.workers == 2 and not newcomers:
            options = ["--num-cpus", "1", "--dashboard-agent-listen-port", "0", "--block"]
            newcomers.append(subprocess.Popen([*RAY, "start", "--address", cluster.address, *options], stdout=subprocess.DEVNULL))

    report = job.run(spec, launch, show, lambda line: (said.append(line), print(line, file=sys.stderr, flush=True))[0])
    for newcomer in newcomers:
        newcomer.terminate()
        newcomer.wait()
    print(json.dumps({"said": said, "report": asdict(report) | {"artifact": str(report.artifact)}}))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
