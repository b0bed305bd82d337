"""Jobs on a real node whose inputs come from buckets and web servers, and whose outputs go to buckets."""

from __future__ import annotations

import io
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain
from minio import Minio

from yardtest.minio import S3Server
from yardtest.wait import until
from yardtest.website import Page, Website
from yardtest.yard import TestYard, running_yard

SIGNATURE = "pl4nted-s1gnature-Qx7"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Website]:
    with Website(tmp_path_factory.mktemp("site")) as running:
        yield running


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str, site: Website, minio: S3Server) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, nodes=0) as running:
        (running.secrets / "s3").write_bytes(minio.credentials.read_bytes())
        for name in "ab":
            running.start_node(
                name, environment={"SSL_CERT_FILE": str(site.ca)}, allow_url_host="localhost", fetch_gib=0.1
            )
        yield running
        running.nothing_left()
        running.healthy()


@pytest.fixture(scope="module")
def client(minio: S3Server) -> Minio:
    return minio.access().client()


@pytest.fixture
def bucket(client: Minio) -> str:
    name = f"data-{next(_numbers)}-{os.getpid()}"
    client.make_bucket(name)
    return name


def put(client: Minio, bucket: str, **objects: str) -> None:
    for key, text in objects.items():
        client.put_object(bucket, key.replace("__", "/"), io.BytesIO(text.encode()), len(text))


def contents(client: Minio, bucket: str) -> dict[str, str]:
    keys = [str(one.object_name) for one in client.list_objects(bucket, recursive=True)]
    return {key: client.get_object(bucket, key).data.decode() for key in keys}


def from_s3(bucket: str, key: str, **more: Any) -> dict[str, Any]:
    return {"uri": f"s3://{bucket}/{key}", "credentials": "s3", **more}


def to_s3(path: str, bucket: str, key: str) -> dict[str, Any]:
    return {"path": path, "to": f"s3://{bucket}/{key}", "credentials": "s3"}


def step(yard: TestYard, script: str, **job: Any) -> Any:
    return yard.signature("sh", "-c", script, **job)


def test_a_chain_takes_from_a_bucket_and_gives_to_one(yard: TestYard, client: Minio, bucket: str) -> None:
    put(client, bucket, raw__names="b\na\n")
    last = chain(
        step(yard, "sort /in/n >/work/sorted.txt", inputs={"/in/n": from_s3(bucket, "raw/names")},
             outputs={"o": to_s3("/work/sorted.txt", bucket, "cooked/")}),
        step(yard, "cat /in/own /in/theirs >/work/both",
             inputs={"/in/own": {"from": "o"}, "/in/theirs": from_s3(bucket, "cooked/sorted.txt")},
             outputs={"o": to_s3("/work/both", bucket, "both.txt")}),
    ).apply_async()  # fmt: skip
    result = last.get(timeout=60)
    assert contents(client, bucket) == {
        "both.txt": "a\nb\na\nb\n", "cooked/sorted.txt": "a\nb\n", "raw/names": "b\na\n"
    }  # fmt: skip
    assert result["outputs"]["o"]["uri"] == f"s3://{bucket}/both.txt"
    first: Any = last.parent
    assert first.get(timeout=5)["outputs"]["o"]["uri"] == f"s3://{bucket}/cooked/sorted.txt"


def test_directories_go_both_ways(yard: TestYard, client: Minio, bucket: str) -> None:
    put(client, bucket, in__a="1", in__sub__b="2")
    script = "cd /in/d && mkdir -p /work/out/x && cat a sub/b >/work/out/all && cp sub/b /work/out/x/ && ! touch a"
    made = yard.shell(script, inputs={"/in/d": from_s3(bucket, "in/")}, outputs={"o": to_s3("/work/out", bucket, "r/")})
    output = made.get(timeout=60)["outputs"]["o"]
    assert contents(client, bucket) == {"in/a": "1", "in/sub/b": "2", "r/all": "12", "r/x/b": "2"}
    assert (output["kind"], output["uri"]) == ("tree", f"s3://{bucket}/r/")
    again = yard.shell("cat /in/d/x/b /in/d/all; test $(cat /in/d/all) = 12", inputs={"/in/d": output["digest"]})
    assert again.get(timeout=60)["exit_code"] == 0


def test_a_directory_of_the_node_is_an_input_too(yard: TestYard) -> None:
    (yard.shared / "folder/sub").mkdir(parents=True)
    (yard.shared / "folder/sub/a").write_text("x")
    script = "test $(cat /in/d/sub/a) = x && ! touch /in/d/new && cp -r /in/d /work/d"
    made = yard.shell(script, inputs={"/in/d": f"file://{yard.shared}/folder"}, outputs={"d": "/work/d"})
    assert made.get(timeout=60)["outputs"]["d"]["kind"] == "tree"


def test_the_same_inputs_again_move_no_byte(yard: TestYard, client: Minio, bucket: str, site: Website) -> None:
    put(client, bucket, in__a="1" * 1000)
    site.pages["/again"] = Page(body=b"2" * 1000, etag='"1"')
    inputs = {"/in/s": from_s3(bucket, "in/"), "/in/w": site.url("/again")}

    def run() -> str:
        result = yard.shell("cat /in/s/a /in/w | wc -c >/work/n", inputs=inputs, outputs={"n": "/work/n"}, queue="cpu")
        return str(result.get(timeout=60)["node"])

    site.bytes_sent = 0
    ran = [run() for _ in range(4)]
    assert site.bytes_sent == 1000 * len(set(ran))


def test_a_presigned_uri_shows_its_signature_nowhere(yard: TestYard, site: Website) -> None:
    uri = site.url(f"/nosuch?X-Amz-Signature={SIGNATURE}")
    reason = yard.reason(yard.shell("true", inputs={"/in/w": uri}))
    assert reason == f'input "/in/w": {site.url("/nosuch")}?… answers 404 (not found); correct the URI'
    site.pages["/there"] = Page(body=b"x", etag='"1"')
    good = yard.shell("cat /in/w", inputs={"/in/w": site.url(f"/there?X-Amz-Signature={SIGNATURE}")})
    assert good.get(timeout=60)["exit_code"] == 0
    bad = yard.send("true", inputs={"/in/w": f"https://user@localhost/x?X-Amz-Signature={SIGNATURE}"})
    assert "user or password" in yard.reason(bad)
    assert any(SIGNATURE in path for _, path, _ in site.asked)
    for log in yard.directory.glob("*.log"):
        assert SIGNATURE not in log.read_text(errors="replace"), log
    for name in yard.nodes:
        for path in yard.state_of(name).rglob("*"):
            assert not path.is_file() or SIGNATURE.encode() not in path.read_bytes(), path
    for key in yard.redis.scan_iter():
        assert SIGNATURE.encode() not in (yard.redis.dump(key) or b""), key


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"inputs": {"/in/x": "https://169.254.169.254/latest/meta-data/"}}, "169.254.169.254, which is not a public"),
        ({"inputs": {"/in/x": "https://127.0.0.1/x"}}, "127.0.0.1, which is not a public address"),
        ({"inputs": {"/in/x": "s3://bucket-of-amazon/x?versionId=1"}}, 'must not hold "?"'),
        ({"inputs": {"/in/x": {"uri": "s3://bucket/x", "credentials": "nosuch"}}}, 'secret "nosuch"'),
        ({"inputs": {"/in/x": {"uri": "s3://no-such-bucket-there/x", "credentials": "s3"}}}, "NoSuchBucket"),
        ({"outputs": {"o": {"path": "/work/x", "to": "s3://no-such-bucket-there/x", "credentials": "s3"}}},
         'output "o": s3://no-such-bucket-there/'),
        ({"outputs": {"o": {"path": "/work/x", "to": "s3://bucket/x"}}}, "go together"),
        ({"outputs": {"o": {"path": "/work/x", "to": "https://host/x", "credentials": "s3"}}}, "s3://BUCKET/KEY"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_in_words(yard: TestYard, job: dict[str, Any], words: str) -> None:
    assert words in yard.reason(yard.shell("echo x >/work/x", **job))


def test_a_redirect_to_the_metadata_service_ends_the_job(yard: TestYard, site: Website) -> None:
    site.pages["/evil"] = Page(status=302, headers={"Location": "https://169.254.169.254/latest/meta-data/"})
    reason = yard.reason(yard.shell("cat /in/x", inputs={"/in/x": site.url("/evil")}))
    assert "169.254.169.254, which is not a public address" in reason


def test_a_job_that_fails_writes_nothing(yard: TestYard, client: Minio, bucket: str) -> None:
    yard.reason(yard.shell("echo x >/work/x; exit 3", outputs={"o": to_s3("/work/x", bucket, "x")}))
    assert contents(client, bucket) == {}


def test_a_node_that_was_cut_off_does_not_overwrite_what_the_next_one_wrote(
    yard: TestYard, client: Minio, bucket: str, tmp_path: Path
) -> None:
    job = yard.shell("hostname >/work/x; sleep 4", outputs={"o": to_s3("/work/x", bucket, "x")})
    first = yard.running(job.id)
    assert first.node is not None
    stopped = yard.nodes[first.node]
    stopped.tell(signal.SIGSTOP)
    try:
        record = yard.ended(job.id, timeout_s=60)
        wrote = contents(client, bucket)
    finally:
        stopped.tell(signal.SIGCONT)
    assert (record.state, record.node == first.node) == ("SUCCEEDED", False)
    until(lambda: "its lease was lost" in stopped.said() or "the lease is lost" in stopped.said(), "it is told")
    yard.nothing_left()
    assert contents(client, bucket) == wrote
    assert list(wrote) == ["x"]


def test_a_node_that_is_killed_while_it_writes_leaves_nothing_behind(
    yard: TestYard, client: Minio, bucket: str
) -> None:
    script = "mkdir /work/o; for i in $(seq 150); do echo $i >/work/o/$i; done"
    job = yard.shell(script, outputs={"o": to_s3("/work/o", bucket, "o/")})
    until(lambda: next(iter(client.list_objects(bucket, prefix="o/.batchyard/", recursive=True)), None),
          "the node writes", every_s=0.01)  # fmt: skip
    record = yard.peek(job.id)
    assert record is not None
    assert record.node is not None
    yard.kill9(yard.nodes[record.node])
    yard.start_node(record.node)
    assert job.get(timeout=60)["exit_code"] == 0
    assert contents(client, bucket) == {f"o/{i}": f"{i}\n" for i in range(1, 151)}
