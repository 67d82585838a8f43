"""Serving under fire: kills, a scale-down and changes of model under steady load with real image bodies; no request may fail.

    python -m benchmarks.campaign_serve [PHOTOS]

A real `sightline serve` on a local Ray, behind HAProxy, of a small model with random weights. Requests begin at fixed moments,
whether or not earlier ones are answered, each with a photo of some hundred kilobytes, and nothing is asked again. Where the one
front door of the machine itself dies, requests fail until it is back: that is measured beside.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.report import section
from sightline.models.artifact import Artifact, write
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from sightline.pipelines.lens.figures import panels, save
from sightline.serve.client import RETRY_S
from tests.conftest import clean_environment
from tests.faults.serving import Asked, Load, Running, photo, running, wait_until

PER_S, STORM_PER_S, LARGEST = 20, 200, 700_000
CALM_S = 5  # before and after each event
MODEL = ModelConfig(
    embed_dim=64,
    vision={"image_size": 64, "patch_size": 16, "width": 128, "layers": 4, "head_width": 32},
    text={"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    preprocess=Preprocess(size=64),
)
DOORS = {"SIGKILL of HAProxy, the one front door": "haproxy", "SIGKILL of the actor that runs HAProxy": "manager"}
Event = Callable[[Running], None]


def main(photos: str | None = None) -> None:
    body = largest(Path(photos)) if photos else photo(300)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        old, new = artifact(folder / "old", 1.0), artifact(folder / "new", 1.5)
        rows: list[tuple[str, ...]] = []
        for row in itertools.chain(fixed(folder, old, new, body), scaled(folder, old, body)):
            rows.append(row)
            write_down(rows, body)  # as far as it has come


def write_down(rows: list[tuple[str, ...]], body: bytes) -> None:
    what = (
        f"{PER_S} requests a second to /v1/classify, each with a photo of {len(body) / 1000:.0f} kB, two replicas of half a CPU; "
        "p99 within five seconds of the event"
    )
    header = ("event", "requests", "failed", "p99", "p99 without event")
    section("Serving under fire", "python -m benchmarks.campaign_serve [PHOTOS]", what, ("ray", "torch"), header, rows)


def largest(photos: Path) -> bytes:
    """The largest photo that HAProxy can repeat."""
    sizes = {path: path.stat().st_size for path in photos.rglob("*.jp*g")}
    return max((path for path in sizes if sizes[path] < LARGEST), key=sizes.__getitem__).read_bytes()


def artifact(folder: Path, scale: float) -> Path:
    weights = {name: tensor * scale if tensor.is_floating_point() else tensor for name, tensor in build(MODEL).state_dict().items()}
    write(folder, Artifact(folder.name, MODEL, (), {"corpus_root": "0" * 64}), weights, ["a photo"])
    return folder


def fixed(folder: Path, old: Path, new: Path, body: bytes) -> Iterator[tuple[str, ...]]:
    """Events that leave the number of replicas as it is."""
    events: dict[str, Event] = {
        "SIGKILL of a replica": killing("replica", 2),
        "SIGKILL of the proxy actor": killing("proxy", 1),
        "SIGKILL of Serve's controller": killing("controller", 1),
        "canary of 10 %": rolling(new, "--share", 0.1),
        "canary to all": rolling(new),
        "back": rolling("--back"),
        "SIGKILL of a replica during a rollout": both(killing("replica", 2), rolling(new)),
    }
    total, lost = 0, 0
    with running(old, clean_environment(folder), "--replicas", 2, "--cpus-per-replica", 0.5) as service:
        for name, event in events.items():
            load, row = under(service, body, name, event)
            yield row
            total, lost = total + len(load.asked), lost + len(load.failed())
        yield ("together", f"{total:,}", str(lost), "", "")
        for name, title in DOORS.items():
            yield front_door(service, body, name, title)


def under(service: Running, body: bytes, name: str, event: Event) -> tuple[Load, tuple[str, ...]]:
    """An event in the middle of steady load."""
    load = Load(service.url, body, PER_S)
    load.begin()
    time.sleep(CALM_S)
    at = time.monotonic()
    event(service)
    time.sleep(CALM_S)
    load.end()
    for one in load.failed():
        print(name, one, file=sys.stderr)
    calm, then = load.quantile(0.99, until=at), load.quantile(0.99, since=at - 1, until=at + 5)
    return load, (name, f"{len(load.asked):,}", str(len(load.failed())), f"{then:.2f} s", f"{calm:.2f} s")


def killing(title: str, count: int) -> Event:
    def event(service: Running) -> None:
        killed = service.kill(title)
        wait_until(lambda: service.replaced(title, killed, count), 90)

    return event


def rolling(*arguments: object) -> Event:
    def event(service: Running) -> None:
        done = service.rollout(*arguments)
        assert done.returncode == 0, done.stderr

    return event


def both(first: Event, second: Event) -> Event:
    def event(service: Running) -> None:
        first(service)
        second(service)

    return event


def front_door(service: Running, body: bytes, name: str, title: str) -> tuple[str, ...]:
    """What listens dies: how long until it answers again, and is that within what the client waits?"""
    load = Load(service.url, body, PER_S)
    load.begin()
    time.sleep(CALM_S)
    at = time.monotonic()
    service.kill(title)
    time.sleep(RETRY_S + CALM_S)
    load.end()
    back = max((one.at + one.seconds for one in load.failed()), default=at) - at
    assert back < RETRY_S, "the client would have given up"
    found = f"answers again after {back:.1f} s (the client asks again for {RETRY_S:.0f} s)"
    return (name, f"{len(load.asked):,}", str(len(load.failed())), found, "")


def scaled(folder: Path, model: Path, body: bytes) -> Iterator[tuple[str, ...]]:
    """From one replica to four and back under load that comes and goes; drawn in docs/autoscaling.svg."""
    options = ("--replicas", "1:4", "--cpus-per-replica", 0.25, "--max-batch", 1)
    with running(model, clean_environment(folder), *options) as service, counting(service) as counted:
        load, storm = Load(service.url, body, PER_S / 3), Load(service.url, body, STORM_PER_S)
        load.begin()
        time.sleep(CALM_S)
        storm.begin()
        wait_until(lambda: len(service.pids("replica")) == 4, 240)
        time.sleep(2 * CALM_S)
        storm.end()
        wait_until(lambda: len(service.pids("replica")) == 1, 300)
        time.sleep(CALM_S)
        load.end()
    draw_scaling(counted, [*load.asked, *storm.asked])
    refused = [one for one in storm.failed() if not one.outcome.startswith("503")]
    failed = load.failed() + refused
    for one in failed:
        print("scaling", one, file=sys.stderr)
    yield (
        f"one replica to four and back ({STORM_PER_S} requests a second more; what is over capacity gets 503)",
        f"{len(load.asked) + len(storm.asked):,}",
        str(len(failed)),
        f"{load.quantile(0.99):.2f} s",
        "",
    )


@contextmanager
def counting(service: Running) -> Iterator[list[tuple[float, int]]]:
    """When how many replicas there were, twice a second."""
    counted: list[tuple[float, int]] = []
    ended = threading.Event()

    def count() -> None:
        while not ended.wait(0.5):
            counted.append((time.monotonic(), len(service.pids("replica"))))

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield counted
    finally:
        ended.set()
        thread.join(10)


def draw_scaling(counted: list[tuple[float, int]], asked: list[Asked]) -> None:
    """Replicas and answers over time."""
    began = counted[0][0]
    figure, (above, below) = panels(2, columns=1, side=3.2)
    figure.set_size_inches(7, 4.5)
    above.step([at - began for at, _ in counted], [count for _, count in counted], where="post")
    above.set(ylabel="replicas", ylim=(0, 4.5), title="from one replica to four and back")
    seconds = int(counted[-1][0] - began) + 1
    for name, outcomes in {"answered": ("ok",), "refused (503)": ("503",)}.items():
        rate = [0] * seconds
        for one in asked:
            end = int(one.at + one.seconds - began)
            if one.outcome.startswith(outcomes) and 0 <= end < seconds:
                rate[end] += 1
        below.plot(range(seconds), rate, label=name)
    below.set(xlabel="seconds", ylabel="requests a second")
    below.legend(frameon=False)
    save(figure, Path(__file__).resolve().parent.parent / "docs" / "autoscaling.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
