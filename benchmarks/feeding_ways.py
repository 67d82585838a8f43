"""One way to feed training with batches of 64 images, uint8 [64, 3, 224, 224], in a process of its own; `feeding.py` starts it.

    python -m benchmarks.feeding_ways write|read WAY WORK --workers N [--batches N] [--pause-ms X]

`write` brings WORK/photos into the way's own format, `read` times it and prints one line of JSON. All ways decode by the same
function, with as many threads or processes as there are workers, but Ray's `read_images`, which decodes by Pillow and squashes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sightline.models.codec import decode_rgb
from sightline.models.preprocess import Preprocess

BATCH, WARM = 64, 16  # samples; batches before the clock starts: Ray Data takes some until its queues are full
PREPROCESS = Preprocess(size=224)
SHARD = 1000  # samples in a tar file
WHERE = ("consumer", "decoders", "ray")  # whose CPU time it was
RAYS_ACTORS = (
    "ray::_StatsActor",
    "ray::_AutoscalingCoordinatorActor",
    "ray::ActorLocationTracker",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
)
CHUNK_BYTES = 64 * 2**20  # of the formats that have chunks
Batches = Iterator[Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("write", "read"))
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("work", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--pause-ms", type=float, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)  # of each thread or process that decodes
    write, read, needs = WAYS[given.way]
    with contextlib.redirect_stdout(sys.stderr):  # some libraries talk
        if given.verb == "write":
            if write:
                write(given.work)
            return
        for module in needs:  # imports are not waiting for data
            import_module(module)
        line = json.dumps(timed(lambda: read(given.work, given.workers), given.batches, given.pause_ms / 1e3))
    print(line, flush=True)


def timed(begin: Callable[[], Batches], count: int, pause_s: float) -> dict[str, float]:
    """Take batches, pausing after each as training does with it: time to the first; of the later ones samples/s, waiting, and CPU
    milliseconds a sample, by where they went.
    """
    begun = time.perf_counter()
    batches = begin()
    first = waited = start = 0.0
    before: dict[str, float] = {}
    for number in range(WARM + count):
        asked = time.perf_counter()
        batch = next(batches)
        got = time.perf_counter()
        assert tuple(batch.shape) == (BATCH, 3, 224, 224), batch.shape
        first = first or got - begun
        if number == WARM - 1:
            before, start = cpu_seconds(), got
        elif number >= WARM:
            waited += got - asked
        time.sleep(pause_s)
    seconds = time.perf_counter() - start - pause_s  # the pause of the last warm batch was within
    after = cpu_seconds()
    cpu = {where: 1e3 * (after[where] - before.get(where, 0.0)) / (count * BATCH) for where in after}
    return {"first_s": first, "samples_per_s": count * BATCH / seconds, "waited": waited / seconds, **cpu}


def cpu_seconds() -> dict[str, float]:
    """Of this process, of those that decode for it, and of those that Ray has for itself."""
    found = dict.fromkeys(WHERE, 0.0)
    consumer = psutil.Process()
    for process in (consumer, *consumer.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times, title = process.cpu_times(), " ".join(process.cmdline())
            of_ray = title.startswith(RAYS_ACTORS) or (not title.startswith("ray::") and "/ray/" in title)
            found["consumer" if process == consumer else "ray" if of_ray else "decoders"] += times.user + times.system
    return found


def decode(data: bytes | memoryview) -> Tensor:
    return PREPROCESS.pixels(decode_rgb(data))


def load(path: Path) -> Tensor:
    return decode(path.read_bytes())


def photos(work: Path) -> list[Path]:
    return sorted((work / "photos").glob("*.jpg"))


def with_workers(dataset: Any, workers: int, **more: Any) -> Batches:
    """A DataLoader as its users have it: worker processes that make whole batches."""
    return iter(DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True, **more))


# --- ours, and the loop that does nothing else


def bare(work: Path, workers: int) -> Batches:
    """Read, decode and resize in threads, each a file at a time; nothing is shuffled, only the last step makes a batch."""
    with ThreadPoolExecutor(workers) as pool:
        files = itertools.cycle(photos(work))
        ahead = [pool.submit(load, next(files)) for _ in range(2 * BATCH)]
        while True:
            batch = [future.result() for future in ahead[:BATCH]]
            ahead = ahead[BATCH:] + [pool.submit(load, next(files)) for _ in range(BATCH)]
            yield torch.stack(batch)


def inline_feed(work: Path, workers: int) -> Any:
    from sightline.models.augment import Augment
    from sightline.pipelines.corpus.reader import Corpus
    from sightline.pipelines.feed.inline import InlineFeed, PixelLoader
    from sightline.pipelines.feed.order import Samples

    corpus = Corpus.open(work / "corpus")
    return InlineFeed(
        PixelLoader(corpus, Augment(), PREPROCESS, "bench"), Samples(corpus.select()), "bench", BATCH, threads=workers
    )


def inline(work: Path, workers: int) -> Batches:
    for batch in inline_feed(work, workers).batches(0, 10**6):
        yield batch.inputs


def ray_data(work: Path, workers: int) -> Batches:
    start_ray(work, workers)
    from sightline.pipelines.feed.job import RayFeed

    for batch in RayFeed(inline_feed(work, workers), actors=workers).batches(0, 10**6):
        yield batch.inputs


def start_ray(work: Path, workers: int) -> None:
    import ray

    folder = work / "ray"  # its sockets' paths are short, as `work` is
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        _temp_dir=str(folder),
    )


# --- peers


def read_images(work: Path, workers: int) -> Batches:
    start_ray(work, workers)
    import ray.data

    images = ray.data.read_images(str(work / "photos"), size=(224, 224), mode="RGB")
    for batch in images.iter_batches(batch_size=BATCH):
        yield torch.from_numpy(batch["image"]).permute(0, 3, 1, 2)


def write_webdataset(work: Path) -> None:
    (work / "webdataset").mkdir()
    for number, files in enumerate(groups(photos(work))):
        with tarfile.open(work / "webdataset" / f"{number:05d}.tar", "w") as tar:
            for file in files:
                data = file.read_bytes()
                info = tarfile.TarInfo(file.name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def groups(files: list[Path]) -> Iterator[list[Path]]:
    return (files[start : start + SHARD] for start in range(0, len(files), SHARD))


def webdataset(work: Path, workers: int) -> Batches:
    wds = import_module("webdataset")
    shards = [str(path) for path in sorted((work / "webdataset").glob("*.tar"))]
    dataset = (
        wds.WebDataset(shards, shardshuffle=False).shuffle(1000).to_tuple("jpg").map_tuple(decode).batched(BATCH, partial=False)
    )
    for (batch,) in wds.WebLoader(dataset, batch_size=None, num_workers=workers):
        yield batch


def write_streaming(work: Path) -> None:
    with import_module("streaming").MDSWriter(
        out=str(work / "streaming"), columns={"image": "bytes"}, size_limit=CHUNK_BYTES, progress_bar=False
    ) as writer:
        for path in photos(work):
            writer.write({"image": path.read_bytes()})


def streaming(work: Path, workers: int) -> Batches:
    library = import_module("streaming")
    import_module("streaming.base.util").clean_stale_shared_memory()
    parent: Any = library.StreamingDataset

    class Decoded(parent):
        def __getitem__(self, at: Any) -> Tensor:
            return decode(super().__getitem__(at)["image"])

    return with_workers(Decoded(local=str(work / "streaming"), shuffle=True, batch_size=BATCH), workers)


def write_litdata(work: Path) -> None:
    library = import_module("litdata")
    library.optimize(
        read_bytes, [str(path) for path in photos(work)], str(work / "litdata"), chunk_bytes=CHUNK_BYTES, num_workers=1
    )


def read_bytes(path: str) -> dict[str, bytes]:
    return {"image": Path(path).read_bytes()}


def litdata(work: Path, workers: int) -> Batches:
    library = import_module("litdata")
    parent: Any = library.StreamingDataset

    class Decoded(parent):
        def __getitem__(self, at: Any) -> Tensor:
            return decode(super().__getitem__(at)["image"])

    dataset = Decoded(str(work / "litdata"), shuffle=True, drop_last=True)
    return iter(library.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers))


def write_datasets(work: Path) -> None:
    library = import_module("datasets")
    rows = library.Dataset.from_generator(
        lambda: ({"image": path.read_bytes()} for path in photos(work)),
        features=library.Features({"image": library.Value("binary")}),
        cache_dir=str(work / "datasets-cache"),
    )
    rows.save_to_disk(str(work / "datasets"))
    shutil.rmtree(work / "datasets-cache")


def datasets(work: Path, workers: int) -> Batches:
    rows = import_module("datasets").load_from_disk(str(work / "datasets"))
    rows = rows.with_transform(lambda some: {"image": [decode(data) for data in some["image"]]})
    return (batch["image"] for batch in with_workers(rows, workers, shuffle=True))


Way = tuple[Callable[[Path], None] | None, Callable[[Path, int], Batches], tuple[str, ...]]  # writes, reads, and imports to read
FEED = "sightline.pipelines.feed"
WAYS: dict[str, Way] = {
    "bare": (None, bare, ()),
    "inline": (None, inline, (f"{FEED}.inline",)),
    "ray-data": (None, ray_data, (f"{FEED}.job",)),
    "webdataset": (write_webdataset, webdataset, ("webdataset",)),
    "streaming": (write_streaming, streaming, ("streaming",)),
    "litdata": (write_litdata, litdata, ("litdata",)),
    "datasets": (write_datasets, datasets, ("datasets",)),
    "read-images": (None, read_images, ("ray.data",)),
}

if __name__ == "__main__":
    main()
