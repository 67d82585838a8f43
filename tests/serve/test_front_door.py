"""HAProxy as the service starts it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

SERVICE = """
import subprocess, sys, time
from pathlib import Path
from sightline.serve.front_door import environment

folder = Path(sys.argv[1])
ours = environment(folder)
(folder / "haproxy.cfg").write_text(f'''
global
    stats socket {folder}/admin.sock mode 666 level admin
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    option redispatch 1
frontend metrics
    bind :{ours["RAY_SERVE_HAPROXY_METRICS_PORT"]}
listen stats
    bind *:{ours["RAY_SERVE_HAPROXY_STATS_PORT"]}
''')
door = subprocess.Popen([ours["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(folder / "haproxy.cfg")])
print(door.pid, ours["RAY_SERVE_HAPROXY_STATS_PORT"], flush=True)
time.sleep(300)
"""


def test_it_listens_on_loopback_and_ends_with_a_service_that_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SERVICE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pid, port = map(int, service.stdout.readline().split())
        door = psutil.Process(pid)
        until(lambda: port in {one.laddr.port for one in listeners(door)})
        assert {one.laddr.ip for one in listeners(door)} == {"127.0.0.1"}
        service.send_signal(signal.SIGKILL)
    until(lambda: not door.is_running() or door.status() == psutil.STATUS_ZOMBIE)


def listeners(process: psutil.Process) -> list[Any]:
    return [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]


def until(condition: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
