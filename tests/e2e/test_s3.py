"""A bucket in, a bucket out: what a person types, against a real S3 API."""

from __future__ import annotations

import json
from pathlib import Path

from sightline.pipelines.corpus.reader import Corpus
from tests.conftest import CommandLine
from tests.corpora import digits_source, ingest_alone
from tests.s3 import S3Server


def last_line(output: str) -> dict[str, object]:
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


def test_a_bucket_becomes_a_corpus_in_a_bucket_with_the_root_of_one_made_here(
    s3_server: S3Server, cli: CommandLine, tmp_path: Path
) -> None:
    import s3fs

    source = digits_source(tmp_path / "source", 40, 10, 20)
    bucket, server = s3_server.make_bucket(), s3_server.environment
    store = s3fs.S3FileSystem(key="test", secret="test", endpoint_url=s3_server.endpoint, skip_instance_cache=True)
    store.put(str(source), f"{bucket}/source", recursive=True)
    done = cli("ingest", f"{bucket}/source", f"{bucket}/corpus", "--json", env=server)
    assert done.returncode == 0, done.stderr
    result = last_line(done.stdout)
    assert (result["seen"], result["kept"]) == (70, 70)
    assert result["root"] == Corpus.open(ingest_alone(source, tmp_path / "corpus")).root
    again = cli("ingest", f"{bucket}/source", f"{bucket}/corpus", "--json", env=server)
    assert last_line(again.stdout)["root"] == result["root"]
    denied = cli("ingest", f"{bucket}/source", "s3://there-is-no-such-bucket/corpus", env=server)
    assert denied.returncode == 2
    assert len(denied.stderr.strip().splitlines()) == 1, denied.stderr
    assert "bucket" in denied.stderr
