"""Serving embeddings of photos: Sightline against a bare loop, LitServe around the same functions, and infinity.

    python -m benchmarks.serving PHOTOS [WAY ...]

One model for all, of the size of ViT-B/32 with random weights: an artifact, and its export to transformers for infinity. Each way
is a server process of its own, asked over loopback by closed-loop clients on the same two cores, which take turns at nothing: as
many requests are under way as there are clients. A request holds one photo. Without WAY all run; `noop` is our stack around next
to nothing.

The peers live in an environment of their own, made from serving_peers.txt on the first run.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import numpy as np
import torch

from benchmarks.report import environment, table, write_section
from sightline.models.artifact import Artifact, write
from sightline.models.preprocess import Preprocess
from sightline.models.towers import ModelConfig, build
from sightline.models.zeroshot import PHOTO_TEMPLATES
from sightline.recipes import find_recipe
from sightline.serve.limits import Limits
from sightline.serve.served import load
from tests.serve.conftest import free_port

PEERS = Path(sys.prefix) / "peers" / "serving"
REQUIREMENTS = Path(__file__).resolve().with_name("serving_peers.txt")
CHECKOUT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 4, 16, 64)
MAX_BATCH, PHOTOS, LABELS = 8, 64, [f"a photo of number {i}" for i in range(10)]
WARM_S, TIMED_S, STARTS_WITHIN_S = 1.5, 5.0, 180.0
WAYS = ("bfloat16", "float32", "litserve-bfloat16", "litserve-float32", "infinity", "noop")
Body = Callable[[bytes], dict[str, Any]]


def main(photos: str, *ways: str) -> None:
    bodies = [path.read_bytes() for path in itertools.islice(sorted(Path(photos).rglob("*.jp*g")), PHOTOS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tiny = artifact(folder / "b32", find_recipe("clip_vit_b32").model), artifact(folder / "tiny", TINY)
        rows: list[tuple[str, ...]] = []
        for precision in ("bfloat16", "float32"):
            rows.append(("bare loop, " + precision, "", "", f"{bare(model, precision, bodies):.1f}", "", ""))
            print(rows[-1], flush=True)
        for way in ways or WAYS:
            with server(way, model, tiny, folder) as (url, ask):
                await_answer(url, ask, bodies[0])
                for endpoint, body in ask.items():
                    for clients in CLIENTS:
                        found = asyncio.run(measure(url + endpoint, body, bodies, clients))
                        per_s, median, p99 = found
                        rows.append((way, endpoint, str(clients), f"{per_s:.1f}", f"{1000 * median:.0f}", f"{1000 * p99:.0f}"))
                        print(rows[-1], flush=True)
    report(rows, bodies)


TINY = ModelConfig(
    embed_dim=512,
    vision={"image_size": 32, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32},
    text={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    preprocess=Preprocess(size=32),
    templates=PHOTO_TEMPLATES,
)


def artifact(folder: Path, config: ModelConfig) -> Path:
    torch.manual_seed(0)
    write(folder, Artifact(folder.name, config, (), {"corpus_root": "0" * 64}), build(config).state_dict(), ["a photo"])
    return folder


def bare(model: Path, precision: str, bodies: list[bytes]) -> float:
    """Images a second of decoding and the tower alone, in batches, without any server; decoding runs beside the tower."""
    torch.set_num_threads(2)
    engine = load(str(model), precision).engine  # type: ignore[arg-type]
    batches = [bodies[i : i + MAX_BATCH] for i in range(0, len(bodies), MAX_BATCH)]
    engine.embed_images([engine.pixels(body, Limits().max_pixels) for body in batches[0]])
    with ThreadPoolExecutor(2) as pool:
        began, done = time.perf_counter(), 0
        coming = [pool.submit(engine.pixels, body, Limits().max_pixels) for body in batches[0]]
        for number in itertools.count(1):
            images = [one.result() for one in coming]
            coming = [pool.submit(engine.pixels, body, Limits().max_pixels) for body in batches[number % len(batches)]]
            engine.embed_images(images)
            done += len(images)
            if time.perf_counter() - began > TIMED_S:
                return done / (time.perf_counter() - began)
    raise AssertionError


def embeddings(body: bytes, model: str | None = None) -> dict[str, Any]:
    url = "data:image/jpeg;base64," + base64.b64encode(body).decode()
    return {"json": {"input": [url]} if model is None else {"model": model, "modality": "image", "input": [url]}}


def classify(body: bytes) -> dict[str, Any]:
    form = aiohttp.FormData({"labels": "\n".join(LABELS)})
    form.add_field("image", body, filename="photo.jpg")
    return {"data": form}


@contextmanager
def server(way: str, model: Path, tiny: Path, folder: Path) -> Iterator[tuple[str, dict[str, Body]]]:
    """A server of that kind, once it answers; its URL, and how each endpoint is asked."""
    port = str(free_port())
    url, ask = f"http://127.0.0.1:{port}", {"/v1/embeddings": embeddings}
    threads = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    if way.startswith("litserve-"):
        peer_environment()
        verb = [PEERS / "bin" / "python", "-m", "benchmarks.serving_litserve", model, port, str(MAX_BATCH), way.partition("-")[2]]
        # It shares our torch; of the peers' environment it takes LitServe alone.
        threads["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), sysconfig.get_path("purelib")])
    elif way == "infinity":
        peer_environment()
        exported = folder / "b32-hf"
        subprocess.run(
            [sys.executable, "-m", "sightline", "export", str(model), str(exported), "--to", "hf"], check=True, stdout=sys.stderr
        )
        for_older_transformers(exported / "tokenizer_config.json")
        verb = [PEERS / "bin" / "infinity_emb", "v2", "--model-id", exported, "--engine", "torch", "--device", "cpu"]
        verb += ["--dtype", "float32", "--no-model-warmup", "--host", "127.0.0.1", "--port", port, "--batch-size", str(MAX_BATCH)]
        ask = {"/embeddings": lambda body: embeddings(body, "b32-hf")}
    else:
        served = tiny if way == "noop" else model
        verb = [sys.executable, "-m", "sightline", "serve", served, "--port", port, "--cpus-per-replica", "2"]
        verb += ["--max-batch", str(MAX_BATCH), "--precision", "float32" if way == "noop" else way]
        ask = {"/v1/embeddings": embeddings, "/v1/classify": classify}
    process = subprocess.Popen(
        [str(word) for word in verb],
        cwd=CHECKOUT,
        env={**os.environ, **threads},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield url, ask
    finally:
        process.terminate()  # not its group: Ray's own processes are needed for a good end
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):  # LitServe leaves its workers behind
            os.killpg(process.pid, signal.SIGKILL)


def for_older_transformers(config: Path) -> None:
    """Infinity's transformers does not know the class by which a newer one names every tokenizer."""
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"tokenizer_class": "CLIPTokenizerFast"}))


def await_answer(url: str, ask: dict[str, Body], photo: bytes) -> None:
    """Return when the server answers a question."""
    endpoint, body = next(iter(ask.items()))
    deadline, last = time.monotonic() + STARTS_WITHIN_S, "nothing"
    while time.monotonic() < deadline:
        try:
            answer = httpx.post(url + endpoint, timeout=60, trust_env=False, **body(photo))
            if answer.is_success:
                return
            last = f"{answer.status_code} {answer.text[:300]}"
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise SystemExit(f"{url}{endpoint} did not answer but with {last}")


async def measure(url: str, body: Body, bodies: list[bytes], clients: int) -> tuple[float, float, float]:
    """Answers a second, and the median and the 99th percentile of their seconds."""
    seconds: list[float] = []
    photos = itertools.cycle(bodies)
    timed_s = TIMED_S + clients / 16
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        began = time.perf_counter()

        async def client() -> None:
            while (at := time.perf_counter()) < began + WARM_S + timed_s:
                async with session.post(url, **body(next(photos))) as response:
                    text = await response.read()
                    assert response.status == 200, text[:300]
                if time.perf_counter() >= began + WARM_S:
                    seconds.append(time.perf_counter() - at)

        await asyncio.gather(*(client() for _ in range(clients)))
        took = time.perf_counter() - began - WARM_S
    return len(seconds) / took, float(np.median(seconds)), float(np.quantile(seconds, 0.99))


def peer_environment() -> None:
    """An environment of its own; made if it is not there."""
    made = PEERS / "made-from.txt"
    if made.exists() and made.read_text() == REQUIREMENTS.read_text():
        return
    venv.create(PEERS, with_pip=True, clear=True)
    pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS)], check=True, stdout=sys.stderr)
    made.write_text(REQUIREMENTS.read_text())


def report(rows: list[tuple[str, ...]], bodies: list[bytes]) -> None:
    kilobytes = np.mean([len(body) for body in bodies]) / 1000
    sizes = f"{len(bodies)} photos of {kilobytes:.0f} kB on average"
    pins = ", ".join(line for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    body = f"""`python -m benchmarks.serving PHOTOS`: a tower of the size of ViT-B/32 with random weights, {sizes}, batches of
at most {MAX_BATCH}, two threads; clients run on the same two cores; {environment("ray", "torch", "fastapi")}; {pins}.
`noop` is our whole stack around a tower of one narrow layer: HTTP, HAProxy, validation, base64 or form, JPEG, batching. LitServe
runs our decoding and the tower by torch; ours in float32 is by onnxruntime (as the bare loop), with which it would be faster.
Infinity runs transformers' CLIP in float32, its default on a CPU.

"""
    header = ("way", "endpoint", "clients", "requests/s", "p50, ms", "p99, ms")
    write_section("Serving, against peers", body + table(header, rows))
    print(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
