"""One Ray for one command: the cluster at an address, or a local one that ends with the command.

A local Ray listens on loopback only, keeps its files below the machine's temporary folder, and stays quiet: what the workers print
is of interest only when something is being debugged.
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
    """
    if ray.is_initialized():
        yield
        return
    # Ray asks on the first start whether it may send usage statistics; a library answers for nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common = {"log_to_driver": debug, "logging_level": logging.INFO if debug else logging.ERROR}
    if address:
        ray.init(address=address, **common)
    else:
        ray.init(
            address="local",
            num_cpus=num_cpus,
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            _node_ip_address="127.0.0.1",
            **common,
        )
    try:
        yield
    finally:
        ray.shutdown()


def available_cpus() -> int:
    """CPUs that the connected Ray may hand out, over all its nodes."""
    return int(ray.cluster_resources().get("CPU", 1))
