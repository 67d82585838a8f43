"""A list of URLs becomes a corpus, and what a server refused becomes error rows with reasons; retried when it is back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from sightline.pipelines.corpus.manifest import read_shards
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.shards import read_answers
from sightline.pipelines.corpus.store import LocalStore
from tests.conftest import CommandLine


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address that serves it."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_urls_become_rows_or_reasons_and_are_retried(site: tuple[Path, str], cli: CommandLine, tmp_path: Path) -> None:
    folder, address = site
    for number in range(12):
        (folder / f"{number}.png").write_bytes(png(number))
    (folder / "page.png").write_text("<html>no image</html>")
    urls = [f"{address}/{name}.png" for name in (*range(12), "page", "absent")] + ["http://169.254.169.254/latest/meta-data"]
    with (tmp_path / "urls.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("url", "caption"), *((url, f"the picture at {url}") for url in urls)])
    done = cli("ingest", "urls.csv", "corpus", "--allow-loopback", "--retries", 0, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["seen"], result["kept"], result["errors"]) == (15, 12, 3)
    assert result["rejected"] == {"fetch/blocked_address": 1, "fetch/http_status": 1, "fetch/not_an_image": 1}
    corpus = Corpus.open(tmp_path / "corpus")
    assert {bytes(corpus.image(i)) for i in range(12)} == {png(number) for number in range(12)}
    row = corpus.row(0)
    assert row.captions == (f"the picture at {row.source}",)
    assert row.extra == "{}"
    (shard,) = read_shards(LocalStore(tmp_path / "corpus"), corpus.manifest.pages)
    (answer,) = (each for each in read_answers(LocalStore(tmp_path / "corpus"), shard) if each.key == row.key)
    assert answer.url == row.source and answer.last_modified and answer.date

    before = corpus.root, sorted(path.name for path in (tmp_path / "corpus").rglob("*"))
    in_vain = cli("corpus", "retry", "corpus", "--code", "fetch/http_status", "--allow-loopback", "--json")
    assert in_vain.returncode == 0 and "the corpus is as it was" in in_vain.stderr
    assert (Corpus.open(tmp_path / "corpus").root, sorted(path.name for path in (tmp_path / "corpus").rglob("*"))) == before

    (folder / "absent.png").write_bytes(png(99))
    again = cli("corpus", "retry", "corpus", "--code", "fetch/http_status", "--allow-loopback", "--json")
    assert again.returncode == 0, again.stderr
    result = json.loads(again.stdout.splitlines()[-1])
    assert (result["seen"], result["kept"], result["errors"]) == (15, 13, 2)


@pytest.mark.campaign
def test_this_machine_is_no_public_address(site: tuple[Path, str], cli: CommandLine, tmp_path: Path) -> None:
    folder, address = site
    (folder / "0.png").write_bytes(png(0))
    (tmp_path / "urls.csv").write_text(f"url,caption\n{address}/0.png,a picture\n")
    done = cli("ingest", "urls.csv", "corpus", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["rejected"] == {"fetch/blocked_address": 1}
