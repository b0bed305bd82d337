"""A MinIO that goes away, is full, or rots under a yard: clear reasons, nothing lost, no wrong byte served."""

from __future__ import annotations

import os
import secrets
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull
from batchyard.cache.digest import Blob
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from yardtest.minio import S3Server, running_server
from yardtest.yard import TestYard, running_yard

BUCKET = "yard"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, nodes=0) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_is_left(yard: TestYard) -> Iterator[None]:
    yield
    yard.nothing_left()
    yard.healthy()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running_server("minio", tmp_path_factory.mktemp("own")) as made:
        yield made


@pytest.fixture
def nodes(yard: TestYard, server: S3Server) -> Iterator[None]:
    """Nodes a and b on that store."""
    with at_store(yard, server, "a", "b"):
        yield


class at_store:
    """Nodes on a store, for the length of a block."""

    def __init__(self, yard: TestYard, server: S3Server, *names: str) -> None:
        self._yard, self._spec, self._names = yard, server.spec(BUCKET), names

    def __enter__(self) -> None:
        self._yard.store.forget_store()  # each of these stores is the yard's for a while
        for name in self._names:
            self._yard.start_node(name, store=self._spec, vcpus=2, wait=False)
        self._yard.wait_ready(*self._names)

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            self._yard.forget_node(name)


def blobs(yard: TestYard, server: S3Server) -> BlobStore:
    """The same blobs as the nodes see."""
    return BlobStore(S3Store(server.access(), BUCKET, create=True), yard.ring)


def put_new(yard: TestYard, server: S3Server, size: int) -> Blob:
    return blobs(yard, server).put_bytes(secrets.token_bytes(size))


def uploads(server: S3Server) -> list[str]:
    return [str(upload.object_name) for upload in server.access().client()._list_multipart_uploads(BUCKET).uploads]


# -- away


def outage(yard: TestYard, server: S3Server, away_s: float) -> None:
    """The store is killed under jobs that end meanwhile and want to keep outputs, and others that want inputs."""
    inputs = [put_new(yard, server, 1_000_000) for _ in range(2)]
    script = f"sleep {away_s / 2}; head -c 1000000 /dev/urandom >/work/o"
    running = [yard.shell(script, outputs={"o": "/work/o"}).id for _ in range(2)]
    for job_id in running:
        yard.running(job_id)
    server.kill9()
    cold = [yard.send("sha256sum", "/in/a", inputs={"/in/a": blob.digest}).id for blob in inputs]
    threading.Event().wait(away_s)
    server.start()
    records = [yard.ended(job_id) for job_id in (*running, *cold)]
    assert [(r.state, len(r.attempts), r.losses) for r in records] == [("SUCCEEDED", 1, 0)] * 4, records
    for job_id in running:
        kept = yard.result(job_id)["outputs"]["o"]
        assert len(blobs(yard, server).read_bytes(kept["digest"], 1 << 20)) == 1_000_000
    for record, blob in zip(records[2:], inputs, strict=True):
        assert record.log is not None
        said = blobs(yard, server).read_bytes(record.log, 1 << 20).decode()
        assert blob.digest.removeprefix("sha256:") in said


def test_jobs_wait_for_a_store_that_is_away(yard: TestYard, server: S3Server, nodes: None) -> None:
    outage(yard, server, 8)


@pytest.mark.full
def test_jobs_wait_for_a_store_that_is_away_for_30_s(yard: TestYard, server: S3Server, nodes: None) -> None:
    outage(yard, server, 30)


def test_a_node_that_starts_while_the_store_is_away_works_once_it_is_there(yard: TestYard, server: S3Server) -> None:
    blob = put_new(yard, server, 1000)
    server.stop()
    try:
        with at_store(yard, server, "late"):
            job = yard.send("true", inputs={"/in/a": blob.digest})
            yard.nodes["late"].wait_for(f"s3://{BUCKET} at https://127.0.0.1:{server.port} does not answer")
            server.start()
            assert job.get(timeout=60)["exit_code"] == 0
            assert len(yard.ended(job.id).attempts) == 1
    finally:
        server.start()


# -- full


@pytest.fixture
def full_server(tmp_path: Path) -> Iterator[S3Server]:
    """A MinIO on a file system of 48 MiB."""
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", disk], check=True)
    made = S3Server("minio", tmp_path / "minio", data=disk / "data")
    try:
        made.start()
        yield made
    finally:
        made.stop()
        subprocess.run(["umount", "-l", disk], check=True)


@root_only
@pytest.mark.parametrize("mb", [60, 7], ids=["larger than the disk", "larger than what is left"])
def test_a_store_that_is_full_fails_the_job_and_keeps_nothing_half(
    yard: TestYard, full_server: S3Server, tmp_path: Path, mb: int
) -> None:
    store = blobs(yard, full_server)
    ballast = [put_new(yard, full_server, 6_000_000) for _ in range(7)] if mb < 10 else []
    with at_store(yard, full_server, "a"):
        before = set(S3Store(full_server.access(), BUCKET).names())
        job = yard.shell(f"head -c {mb}000000 /dev/urandom >/work/o", outputs={"o": "/work/o"})
        reason = yard.reason(job)
        assert 'output "o"' in reason
        assert f"no space left in s3://{BUCKET}" in reason
        assert "free some, or give it a larger disk" in reason
        (tmp_path / "x").write_bytes(secrets.token_bytes(mb * 1_000_000))
        with pytest.raises(DiskFull, match="no space left"):
            store.put_file(tmp_path / "x")
        assert uploads(full_server) == []
        log = yard.ended(job.id).log
        assert len(set(S3Store(full_server.access(), BUCKET).names()) - before) == (1 if log else 0)
        for blob in ballast[:4]:
            S3Store(full_server.access(), BUCKET).delete(yard.ring.name(blob.digest))
        script = "head -c 3000000 /dev/urandom >/work/o"
        assert yard.shell(script, outputs={"o": "/work/o"}).get(timeout=30)["outputs"]["o"]["size"] == 3_000_000


# -- rotten


@pytest.mark.parametrize(
    "size", [3_000_000, *(pytest.param(size, marks=pytest.mark.full) for size in (1_000, 20_000_000))]
)
def test_an_input_that_rots_in_the_store_fails_the_job_and_a_new_put_repairs_it(
    yard: TestYard, server: S3Server, nodes: None, tmp_path: Path, size: int
) -> None:
    (tmp_path / "in").write_bytes(secrets.token_bytes(size))
    blob = blobs(yard, server).put_file(tmp_path / "in")
    files = [p for p in (server.data / BUCKET / yard.ring.name(blob.digest)).rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    with largest.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        byte = file.read(1)
        file.seek(-100, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    reason = yard.reason(yard.send("cat", "/in/a", inputs={"/in/a": blob.digest}))
    assert 'input "/in/a"' in reason
    assert blob.digest in reason
    assert "deleted from the store, put it again" in reason
    assert blobs(yard, server).put_file(tmp_path / "in") == blob
    result = yard.send("sha256sum", "/in/a", inputs={"/in/a": blob.digest})
    assert result.get(timeout=30)["exit_code"] == 0
    log = yard.ended(result.id).log
    assert log is not None
    assert blob.digest.removeprefix("sha256:") in blobs(yard, server).read_bytes(log, 1 << 20).decode()


# -- at once


def test_two_nodes_that_keep_the_same_bytes_at_once_make_one_object(
    yard: TestYard, server: S3Server, nodes: None
) -> None:
    seed, (go,) = secrets.token_hex(8), [yard.shared / "go"]
    go.unlink(missing_ok=True)
    script = f"while [ ! -e /go/go ]; do sleep 0.05; done; yes {seed} | head -c 20000000 >/work/o"
    jobs = [
        yard.shell(script, vcpus=2, outputs={"o": "/work/o"}, inputs={"/go": f"file://{yard.shared}"}) for _ in range(2)
    ]
    records = [yard.running(job.id) for job in jobs]
    assert len({record.node for record in records}) == 2
    before = set(S3Store(server.access(), BUCKET).names())
    go.touch()
    kept = [job.get(timeout=60)["outputs"]["o"] for job in jobs]
    assert kept[0]["digest"] == kept[1]["digest"]
    logs = {yard.ended(job.id).log for job in jobs}
    names = set(S3Store(server.access(), BUCKET).names()) - before
    assert names == {yard.ring.name(digest) for digest in {kept[0]["digest"], *logs} if digest}
    assert uploads(server) == []
    assert blobs(yard, server).has(kept[0]["digest"])
