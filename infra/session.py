"""One Ray for one command: the cluster at an address, or a local one that ends with the command.

A local Ray stays quiet: what the workers print is of interest only when something is being debugged. Its dashboard listens on
loopback; Ray's own processes listen on the machine's address, and ask for the token that Ray makes for local clusters.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray


@contextmanager
def ray_session(
    address: str | None = None, *, num_cpus: int | None = None, debug: bool = False, dashboard: bool = False
) -> Iterator[None]:
    """Connect to Ray and disconnect at the end; a Ray that this process has already is used and left alone.

    Args:
        address: a running cluster's address; None starts a local one.
        num_cpus: what a local Ray may hand out; None: what the machine has.
        debug: show what workers print.
        dashboard: start the dashboard (and with it the job server and the state API) of a local Ray.

    Raises:
        ConnectionError: no cluster answers at the address.
        OSError: a local Ray could not start.
    """
    if ray.is_initialized():
        yield
        return
    # Ray asks on the first start whether it may send usage statistics; a library answers for nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not debug:
        # Ray's C++ part puts on the terminal what is usual for Ray Data's actors: that their arguments are in the object store.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    common = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    if address:
        ray.init(address=address, **common)
    else:
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                **common,
            )
        except Exception as error:  # Ray's own class for this is Exception; the machine is to blame: memory, disk, limits, ports
            why = " ".join(str(error).split())[:300]
            raise OSError(f"a local Ray did not start: {why}; look for a full disk or a low limit (`ulimit -a`)") from error
    try:
        yield
    finally:
        ray.shutdown()


def available_cpus() -> int:
    """CPUs that the connected Ray may hand out, over all its nodes."""
    return int(ray.cluster_resources().get("CPU", 1))


def check_workers(workers: int, *, gpus: bool) -> None:
    """Refuse workers that a Ray which does not grow would wait for forever.

    Raises:
        ValueError: there are fewer CPUs, or GPUs, than workers.
    """
    kind = "GPU" if gpus else "CPU"
    have = int(ray.cluster_resources().get(kind, 0))
    if workers > have:
        remedy = f"give --workers {have} or less" if have else "train without --gpus, or name a cluster by --address"
        raise ValueError(f"{workers} workers need a {kind} each and this machine has {have}; {remedy}")
