"""A store that refuses everything, or a folder that has gone, stops an ingest; it goes on later. One object costs one error row."""

from __future__ import annotations

import json
import pickle
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from sightline.pipelines.corpus.object_store import ObjectStore, shut
from sightline.pipelines.corpus.reader import Corpus
from sightline.pipelines.corpus.shards import done_records
from sightline.pipelines.corpus.store import open_store
from sightline.pipelines.ingest.build import build_shard
from sightline.pipelines.ingest.prepare import prepare
from sightline.pipelines.ingest.report import IngestOptions
from tests.corpora import digits_source, finish_alone, ingest_alone
from tests.pipelines.sources import arrow, gzipped, parquet, tar, tree
from tests.s3 import MakeBucket, S3Server

DENY = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": "s3:*", "Resource": "*"},
        {"Effect": "Deny", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::*/secret/*"},
    ],
}


@pytest.fixture
def checks_who_asks(s3_server: S3Server) -> Iterator[Callable[[], None]]:
    """From the call on, the server knows the access keys that IAM has, and no `test`."""
    yield lambda: allow(s3_server, "0")
    allow(s3_server, "inf")


def allow(server: S3Server, requests: str) -> None:
    """That many requests are answered whoever asks."""
    address, text = f"{server.endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(address, requests.encode(), text)).close()


def user_with(server: S3Server, policy: dict[str, object]) -> dict[str, str]:
    """The variables of a new user."""
    import boto3

    iam = boto3.client("iam", "us-east-1", endpoint_url=server.endpoint, aws_access_key_id="test", aws_secret_access_key="test")
    name = f"reader-{uuid4().hex}"
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


def put(source: Path, url: str) -> str:
    import s3fs

    s3fs.S3FileSystem().put(str(source), url, recursive=True)
    return url


def test_a_source_whose_keys_are_revoked_stops_the_ingest_and_what_was_done_stays(
    s3: MakeBucket, checks_who_asks: Callable[[], None], s3_server: S3Server, tmp_path: Path
) -> None:
    folder = digits_source(tmp_path / "source", 40, 5, 10)
    source = put(folder, f"{s3()}/source")
    prepared = prepare(source, tmp_path / "corpus", IngestOptions(shard_rows=16))
    store, plan = prepared.store, prepared.plan
    build_shard(store, plan, prepared.source, 0)
    checks_who_asks()
    with pytest.raises(ConnectionError, match=r"the source refuses everything \(InvalidAccessKeyId\): no permission to read s3://"):
        build_shard(store, plan, prepared.source, 1)
    assert set(done_records(store, plan.plan_id)) == {0}
    allow(s3_server, "inf")
    assert finish_alone(prepared).root == Corpus.open(ingest_alone(folder, tmp_path / "whole", IngestOptions(shard_rows=16))).root


def test_an_object_that_a_policy_denies_is_one_error_row(
    s3: MakeBucket, checks_who_asks: Callable[[], None], s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    folder = digits_source(tmp_path / "source", 8, 2, 2)
    lines = (folder / "captions.jsonl").read_text().splitlines()
    image = json.loads(lines[0])["image"]
    (folder / "secret").mkdir()
    (folder / image).rename(folder / "secret" / "x.jpg")
    (folder / "captions.jsonl").write_text("\n".join(lines).replace(image, "secret/x.jpg") + "\n")
    source = put(folder, f"{s3()}/source")
    for name, value in user_with(s3_server, DENY).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    checks_who_asks()
    report = finish_alone(prepare(source, tmp_path / "corpus", IngestOptions()))
    assert (report.seen, report.kept, report.rejected_by_code) == (12, 11, {"read/unreadable": 1})


def test_a_bucket_that_is_gone_stops_the_ingest(s3: MakeBucket, tmp_path: Path) -> None:
    import s3fs

    bucket = s3()
    prepared = prepare(put(digits_source(tmp_path / "source", 8, 2, 2), f"{bucket}/source"), tmp_path / "corpus", IngestOptions())
    s3fs.S3FileSystem().rm(bucket, recursive=True)
    with pytest.raises(ConnectionError, match="NoSuchBucket"):
        build_shard(prepared.store, prepared.plan, prepared.source, 0)


def test_an_object_that_is_gone_is_one_error_row(s3: MakeBucket, tmp_path: Path) -> None:
    import s3fs

    source = put(digits_source(tmp_path / "source", 8, 2, 2), f"{s3()}/source")
    prepared = prepare(source, tmp_path / "corpus", IngestOptions())
    s3fs.S3FileSystem().rm(s3fs.S3FileSystem().find(f"{source}/images")[0])
    report = finish_alone(prepared)
    assert (report.kept, report.rejected_by_code) == (11, {"read/missing": 1})


def test_another_corpus_as_the_source_stops_it_too(
    s3: MakeBucket, checks_who_asks: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the cache of shards lies below it
    source = ingest_alone(digits_source(tmp_path / "source", 8, 2, 2), f"{s3()}/corpus")
    prepared = prepare(source, tmp_path / "copy", IngestOptions())
    checks_who_asks()
    with pytest.raises(ConnectionError, match="the source refuses everything"):
        build_shard(prepared.store, prepared.plan, prepared.source, 0)


LAYOUTS: dict[str, dict[str, bytes | str]] = {
    "class_folder": {"cat/a.jpg": b"a", "cat/b.jpg": b"b"},
    "webdataset": {"0.tar": tar([("a.jpg", b"a")]), "1.tar.gz": gzipped(tar([("b.jpg", b"b")]))},
    "parquet": {"x.parquet": parquet([{"image": b"a"}])},
    "arrow": {"x.arrow": arrow([{"image": b"a"}], stream=False)},
    "mask_folder": {"images/a.jpg": b"a", "masks/a.png": b"a"},
}


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a file"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_that_has_gone_stops_the_ingest_and_it_goes_on_when_it_is_back(tmp_path: Path, layout: str, left: str) -> None:
    folder = tree(tmp_path / "source", LAYOUTS[layout])
    prepared = prepare(folder, tmp_path / "corpus", IngestOptions())
    folder.rename(tmp_path / "unmounted")
    if left == "an empty folder":
        folder.mkdir()
    elif left == "a file":
        folder.touch()
    with pytest.raises(ConnectionError, match=r"source has gone since it was listed: .*; bring it back$"):
        build_shard(prepared.store, prepared.plan, prepared.source, 0)
    assert not done_records(prepared.store, prepared.plan.plan_id)
    if folder.is_dir():
        folder.rmdir()
    folder.unlink(missing_ok=True)
    (tmp_path / "unmounted").rename(folder)
    assert set(finish_alone(prepared).rejected_by_code) <= {"decode/not_an_image"}


def test_a_file_that_has_gone_is_one_error_row(tmp_path: Path) -> None:
    folder = tree(tmp_path / "source", LAYOUTS["class_folder"])
    prepared = prepare(folder, tmp_path / "corpus", IngestOptions())
    (folder / "cat" / "a.jpg").unlink()
    assert finish_alone(prepared).rejected_by_code == {"decode/not_an_image": 1, "read/missing": 1}


def test_a_corpus_that_has_gone_stops_the_ingest_of_it(tmp_path: Path) -> None:
    source = ingest_alone(digits_source(tmp_path / "digits", 8, 2, 2), tmp_path / "source")
    prepared = prepare(source, tmp_path / "copy", IngestOptions())
    travelled = pickle.loads(pickle.dumps(prepared.source))
    source.rename(tmp_path / "unmounted")
    with pytest.raises(ConnectionError, match="source has gone since it was listed"):
        build_shard(prepared.store, prepared.plan, travelled, 0)


def test_a_destination_that_refuses_is_one_sentence(s3: MakeBucket, checks_who_asks: Callable[[], None], tmp_path: Path) -> None:
    prepared = prepare(digits_source(tmp_path / "source", 8, 2, 2), f"{s3()}/corpus", IngestOptions())
    checks_who_asks()
    with pytest.raises(PermissionError, match=r"no permission for s3://.*; check the credentials"):
        build_shard(prepared.store, prepared.plan, prepared.source, 0)


@pytest.mark.parametrize(
    "code", ["ExpiredToken", "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidToken", "SlowDown", "403"]
)
def test_what_concerns_the_credentials_or_the_service_is_told_from_what_concerns_an_object(code: str) -> None:
    from botocore.exceptions import ClientError, NoCredentialsError
    from s3fs.errors import translate_boto_error

    def raised(name: str) -> BaseException:
        about = {"Error": {"Code": name, "Message": "words"}}
        try:
            with ObjectStore("s3://b/c")._plainly():
                raise translate_boto_error(ClientError(about, "GetObject"))
        except OSError as error:
            return error

    assert shut(raised(code)) == code
    assert isinstance(raised(code), PermissionError | ConnectionError)
    assert {shut(raised(name)) for name in ("AccessDenied", "NoSuchKey", "InvalidObjectState")} == {None}
    assert shut(NoCredentialsError()) == "NoCredentialsError"
    assert shut(PermissionError(13, "Permission denied", "/a/b.jpg")) is None


def test_a_store_that_does_not_answer_is_a_connection_error(s3: MakeBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ConnectionError, match=r"s3://b/c cannot be (reached|used)"):
        open_store("s3://b/c").size("x")


def test_a_destination_that_cannot_be_written_is_one_sentence_before_any_work(tmp_path: Path) -> None:
    folder = tree(tmp_path / "source", LAYOUTS["class_folder"])
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"^cannot write .*/file/.*: Not a directory; mend that, or give another DEST$"):
        prepare(folder, tmp_path / "file" / "corpus", IngestOptions())


def test_a_source_in_the_home_folder_may_be_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tree(tmp_path / "source", LAYOUTS["webdataset"])
    prepared = [prepare(place, tmp_path / "corpus", IngestOptions()) for place in ("~/source", "~/source/{0.tar,1.tar.gz}", folder)]
    assert prepared[0].location == prepared[2].location == str(folder)
    assert len({one.plan.plan_id for one in prepared}) == 1
    with pytest.raises(ValueError, match="lies in the source"):
        prepare("~/source", "~/source/corpus", IngestOptions())
