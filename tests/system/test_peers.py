"""Two nodes over one MinIO: what both want leaves it once, whatever becomes of the one that fetched it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker import keys
from batchyard.cache.digest import Blob
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from yardtest.cut import CuttingRelay
from yardtest.minio import S3Server
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

MIB = 1 << 20
BUCKET = "peers-durable"


class Way(CuttingRelay):
    """A node's way to the durable store: what comes over it is counted, and it may be `stuck` after some bytes."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        super().__init__(server.port)
        self.bytes, self.stuck_at = 0, 1 << 60
        self.is_stuck, self._goes = threading.Event(), threading.Event()
        self._seen: dict[int, int] = {}
        self.cut_down = self._count
        credentials = folder / f"credentials-{self.port}"
        credentials.write_text(server.credentials.read_text().replace(f":{server.port}", f":{self.port}"))
        self.spec = f"s3://{BUCKET}?credentials={credentials}"

    def _count(self, connection: int, seen: int) -> bool:
        self.bytes += seen - self._seen.get(connection, 0)
        self._seen[connection] = seen
        if seen > self.stuck_at:
            self.is_stuck.set()
            assert self._goes.wait(120)
        return False

    def stick(self, at: int) -> None:
        """No connection gives more than so many bytes until `go`."""
        self.is_stuck.clear()
        self._goes.clear()
        self.stuck_at = at

    def go(self) -> None:
        self.stuck_at = 1 << 60
        self._goes.set()


@pytest.fixture(scope="module")
def ways(minio: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Way]]:
    folder = tmp_path_factory.mktemp("ways")
    with Way(minio, folder) as a, Way(minio, folder) as b:
        yield {"a": a, "b": b}


@pytest.fixture(scope="module")
def yard(
    tmp_path_factory: pytest.TempPathFactory, image: str, minio: S3Server, ways: dict[str, Way]
) -> Iterator[TestYard]:
    """Node a serves `cpu` and `tiny`, its near store is a folder; node b `cpu` and `other`, and its own is a bucket."""
    with running_yard(tmp_path_factory.mktemp("peers"), image, nodes=0) as yard:
        near = {"a": str(yard.directory / "near-a"), "b": minio.spec("peers-near-b")}
        for name, queues in (("a", "cpu,tiny"), ("b", "cpu,other")):
            yard.start_node(
                name, wait=False, store=ways[name].spec, near=near[name], near_gib=4, copies_gib=4, queues=queues,
                peer_address="127.0.0.1", memory_mib=2048, vcpus=8,
            )  # fmt: skip
        yard.wait_ready()
        until(lambda: all(peer_of(yard, name) for name in "ab"), "both tell where their doors are")
        yield yard


@pytest.fixture(scope="module")
def blobs(minio: S3Server, yard: TestYard) -> BlobStore:
    """As somebody sees them who puts inputs."""
    return BlobStore(S3Store(minio.access(), BUCKET, create=True), yard.ring)


def peer_of(yard: TestYard, node: str) -> str:
    return yard.store.nodes().get(node, {}).get("peer", "")


def facts(yard: TestYard, node: str) -> dict[str, int]:
    told: dict[str, int] = json.loads(yard.redis.hget(keys.node(node), "cache") or "{}")
    return told


def gained(yard: TestYard, before: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {node: {what: n - before[node][what] for what, n in facts(yard, node).items()} for node in before}


def sealed_bytes(minio: S3Server, yard: TestYard, blob: Blob) -> int:
    size = S3Store(minio.access(), BUCKET).stat(yard.ring.name(blob.digest))
    assert size is not None
    return size


def new_file(path: Path, mib: int) -> str:
    """Random bytes; the sha256 of the last 64 KiB."""
    piece = b""
    with path.open("wb") as out:
        for _ in range(mib):
            piece = os.urandom(MIB)
            out.write(piece)
    return hashlib.sha256(piece[-65536:]).hexdigest()


@pytest.mark.parametrize(
    ("mib", "jobs"), [(16, 10), pytest.param(1024, 50, marks=[pytest.mark.full, pytest.mark.timeout(600)])]
)
def test_an_input_of_many_jobs_on_two_nodes_leaves_the_durable_store_once(
    yard: TestYard, blobs: BlobStore, minio: S3Server, ways: dict[str, Way], tmp_path: Path, mib: int, jobs: int
) -> None:
    source, go = tmp_path / "source", yard.shared / f"go-{mib}"
    end = new_file(source, mib)
    blob = blobs.put_file(source)
    source.unlink()
    size = sealed_bytes(minio, yard, blob)
    before = {node: facts(yard, node) for node in "ab"}
    came = sum(way.bytes for way in ways.values())
    # all at once, so that each node has its half
    script = f"tail -c 65536 /in/x | sha256sum; until [ -e /shared/{go.name} ]; do sleep 0.2; done"
    inputs = {"/in/x": {"digest": blob.digest, "size": blob.size}, "/shared": f"file://{yard.shared}"}
    sent = [yard.shell(script, vcpus=16 / jobs, inputs=inputs) for _ in range(jobs)]
    nodes = [yard.running(one.id, timeout_s=300).node or "" for one in sent]
    assert sorted(nodes) == ["a"] * (jobs // 2) + ["b"] * (jobs // 2)
    go.touch()
    for one in sent:
        assert end in blobs.read_bytes(one.get(timeout=120)["log"], MIB).decode()

    until(lambda: all(found["misses"] == 1 for found in gained(yard, before).values()), "both tell of their caches")
    found = gained(yard, before)
    assert [found[node]["fetched_bytes"] for node in "ab"] == [blob.size] * 2
    assert sorted(found[node]["far_bytes"] for node in "ab") == [0, size]
    assert sorted(found[node]["peer_bytes"] for node in "ab") == [0, size]
    assert sum(found[node]["peer_failures"] for node in "ab") == 0
    over_the_wire = sum(way.bytes for way in ways.values()) - came
    assert size <= over_the_wire < 1.02 * size + MIB  # TLS, and what is not bytes of the object


def test_a_node_that_is_killed_while_it_fetches_is_not_waited_for(
    yard: TestYard, blobs: BlobStore, ways: dict[str, Way]
) -> None:
    data = os.urandom(24 * MIB)
    blob = blobs.put_bytes(data)
    script = "sha256sum </in/x"
    ways["a"].stick(10 * MIB)
    first = yard.send_quietly(script, queue="tiny", inputs={"/in/x": blob.digest})
    assert ways["a"].is_stuck.wait(30)
    assert yard.redis.get(keys.flight(yard.ring.name(blob.digest))) == b"a"
    second = yard.send_quietly(script, queue="other", inputs={"/in/x": blob.digest})
    until(lambda: (record := yard.peek(second)) and record.state == "STARTING", "b stages its input")
    yard.kill9(yard.nodes["a"])
    ways["a"].go()
    assert yard.ended(second).state == "SUCCEEDED"
    yard.start_node("a")
    assert yard.ended(first).state == "SUCCEEDED"
    for job in (first, second):
        log = blobs.read_bytes(yard.result(job)["log"], MIB).decode()
        assert hashlib.sha256(data).hexdigest() in log
    yard.nothing_left()


def test_what_a_dead_node_had_comes_from_the_durable_store(yard: TestYard, blobs: BlobStore) -> None:
    digest = blobs.put_bytes(os.urandom(4 * MIB)).digest
    assert yard.send("true", queue="tiny", inputs={"/in/x": digest}).get(timeout=60)["exit_code"] == 0
    until(lambda: yard.redis.zscore(keys.holders(yard.ring.name(digest)), "a"), "a tells that it has it")
    yard.kill9(yard.nodes["a"])
    began = time.monotonic()
    assert yard.send("true", queue="other", inputs={"/in/x": digest}).get(timeout=60)["exit_code"] == 0
    assert time.monotonic() - began < 30
    yard.start_node("a")
    yard.healthy()


def test_a_node_with_the_near_store_of_another_is_refused(
    yard: TestYard, ways: dict[str, Way], minio: S3Server
) -> None:
    yard.start_node("c", wait=False, store=ways["a"].spec, near=minio.spec("peers-near-b"), queues="tiny")
    refused = yard.nodes.pop("c")
    refused.wait_for('node "b" uses the same store as --near; give each node one of its own')
    until(lambda: not refused.alive, "it ends")
    assert refused.end() != 0


def test_people_see_what_nodes_gave_each_other(yard: TestYard, blobs: BlobStore) -> None:
    digest = blobs.put_bytes(os.urandom(4 * MIB)).digest
    assert yard.send("true", queue="other", inputs={"/in/x": digest}).get(timeout=60)["exit_code"] == 0
    until(lambda: yard.redis.zscore(keys.holders(yard.ring.name(digest)), "b"), "b tells that it has it")
    given = facts(yard, "a")["peer_bytes"]
    assert yard.send("true", queue="tiny", inputs={"/in/x": digest}).get(timeout=60)["exit_code"] == 0
    until(lambda: facts(yard, "a")["peer_bytes"] > given, "a tells that it has it from b")
    ran = subprocess.run(
        [sys.executable, "-m", "batchyard.broker.cli", "nodes", "--broker", yard.url, "--key-file", str(yard.key_file)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "from nodes, " in ran.stdout
