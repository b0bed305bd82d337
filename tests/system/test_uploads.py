"""Outputs that take long to upload: their nodes work on meanwhile, up to a bound, and nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.broker.cli import look
from batchyard.broker.client import Client
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from yardtest.cut import CuttingRelay
from yardtest.minio import S3Server
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

BUCKET, SMALL_BYTES, OUTPUT_BYTES = "uploads", 300_000, 12_000_000
SCRIPT = f"head -c {OUTPUT_BYTES} /dev/urandom >/work/o"
_NODE: dict[str, Any] = {"vcpus": 1, "most_uploads": 2, "stop_grace_s": 1}


@dataclass
class Slow:
    """A way to a store on which requests of some size get stuck, while `stuck`; logs pass."""

    server: S3Server
    relay: CuttingRelay
    folder: Path
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        told = self.server.credentials.read_text()
        self.credentials = self.folder / "slow"
        self.credentials.write_text(told.replace(f":{self.server.port}", f":{self.relay.port}"))
        self.relay.cut_up = lambda _, seen: seen > SMALL_BYTES and not self.gate.wait(120)
        self.gate.set()

    @property
    def spec(self) -> str:
        return f"s3://{BUCKET}?credentials={self.credentials}"

    def stick(self) -> None:
        self.gate.clear()

    def flow(self) -> None:
        self.gate.set()


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    config = {"lease_s": 10}  # a restarted node finds its leases
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, nodes=0, config=config) as running:
        yield running


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, minio: S3Server) -> Iterator[Slow]:
    with CuttingRelay(minio.port) as relay:
        made = Slow(minio, relay, tmp_path_factory.mktemp("slow"))
        yield made
        made.flow()


@pytest.fixture(scope="module")
def _node(yard: TestYard, slow: Slow) -> None:
    S3Store(slow.server.access(), BUCKET, create=True)
    yard.start_node("a", **_NODE, store=slow.spec)


@pytest.fixture(autouse=True)
def stuck(yard: TestYard, slow: Slow, _node: None) -> Iterator[None]:
    slow.stick()
    yield
    slow.flow()
    yard.nothing_left()
    yard.healthy()
    assert not parts_of(slow.server)


def parts_of(server: S3Server) -> list[Any]:
    """Uploads that were begun and neither ended nor given up."""
    return list(server.access().client()._list_multipart_uploads(BUCKET).uploads)


def about(yard: TestYard, node: str = "a") -> dict[str, str]:
    fields: dict[Any, Any] = yard.redis.hgetall(keys.node(node))
    return {k.decode(): v.decode() for k, v in fields.items()}


def uploading(yard: TestYard, *job_ids: str) -> None:
    """Until Redis knows that these have ended on their nodes and are not settled."""
    for job_id in job_ids:
        until(lambda i=job_id: yard.redis.hexists(keys.job(i), "exited"), f"{job_id} uploads", timeout_s=30)  # type: ignore[misc]


def job(yard: TestYard) -> str:
    """One that takes all vCPUs of the node and writes an output."""
    return str(yard.shell(SCRIPT, vcpus=1, disk_gib=1, outputs={"o": "/work/o"}).id)


def size_of_output(yard: TestYard, slow: Slow, job_id: str) -> int:
    kept = yard.result(job_id)["outputs"]["o"]
    blobs = BlobStore(S3Store(slow.server.access(), BUCKET), yard.ring)
    return len(blobs.read_bytes(kept["digest"], 1 << 26))


def test_while_outputs_are_uploaded_another_job_runs_on_the_vcpus(yard: TestYard, slow: Slow) -> None:
    first = job(yard)
    uploading(yard, first)
    until(lambda: about(yard)["free_vcpus"] == "1", "its vCPU is free")
    assert (about(yard)["free_memory_mib"], about(yard)["free_disk_gib"]) == ("4096", "9")
    assert yard.send("true", vcpus=1).get(timeout=30)["exit_code"] == 0
    record = yard.peek(first)
    assert record is not None
    assert (record.state, record.result) == ("RUNNING", None)
    slow.flow()
    ended, other = yard.ended(first), yard.store.recent(1)[0]
    assert (ended.state, ended.reason) == ("SUCCEEDED", "Essential container in task exited")
    assert ended.ended is not None
    assert other.started is not None
    assert ended.ended < other.started, "a job's end is its container's"
    assert size_of_output(yard, slow, first) == OUTPUT_BYTES


def test_with_too_many_uploads_no_job_is_claimed_and_all_end_well_once_the_store_takes_them(
    yard: TestYard, slow: Slow
) -> None:
    first = [job(yard) for _ in range(2)]
    uploading(yard, *first)
    until(lambda: about(yard)["state"] == "UPLOADING", "the node is full")
    held_back = [job(yard) for _ in range(2)]
    now_s = yard.store.now_s()
    until(lambda: float(yard.store.nodes()["a"]["seen"]) > now_s + 2, "it has looked for jobs meanwhile", timeout_s=20)
    assert [str(yard.store.record(i).state) for i in held_back] == ["RUNNABLE"] * 2
    with Client(yard.url) as client:
        assert [look._doing(node) for node in client.nodes()] == ["full, 2 uploads"]
        said = [reason.text for reason in client.why(held_back[0]) if reason.code == "uploading"]
    assert said == ["node a takes no more jobs until outputs of 2 ended jobs are uploaded: is its store slow, or away?"]
    slow.flow()
    records = [yard.ended(i) for i in (*first, *held_back)]
    assert [(r.state, len(r.attempts), r.losses) for r in records] == [("SUCCEEDED", 1, 0)] * 4
    assert [size_of_output(yard, slow, r.id) for r in records] == [OUTPUT_BYTES] * 4


def test_a_cancel_while_outputs_are_uploaded_keeps_none(yard: TestYard, slow: Slow) -> None:
    job_id = job(yard)
    uploading(yard, job_id)
    assert yard.store.cancel(job_id, "not wanted", terminate=True) == "stopping"
    slow.flow()
    record = yard.ended(job_id)
    assert (record.state, record.reason, record.result) == ("FAILED", "not wanted", None)


def test_a_node_killed_while_it_uploads_goes_on_where_it_was(yard: TestYard, slow: Slow) -> None:
    job_id = job(yard)
    uploading(yard, job_id)
    (container,) = yard.containers(jobs_only=True)
    yard.kill9(yard.nodes["a"])
    yard.start_node("a")
    assert yard.send("true", vcpus=1).get(timeout=30)["exit_code"] == 0
    assert container in yard.containers()
    slow.flow()
    record = yard.ended(job_id)
    assert (record.state, len(record.attempts), record.losses) == ("SUCCEEDED", 1, 0)
    assert size_of_output(yard, slow, job_id) == OUTPUT_BYTES
    for upload in parts_of(slow.server):  # of the killed one: swept after a day
        slow.server.access().client()._abort_multipart_upload(BUCKET, upload.object_name, upload.upload_id)


@pytest.mark.full
def test_a_node_that_drains_waits_for_uploads(yard: TestYard, slow: Slow) -> None:
    yard.forget_node("a")
    yard.start_node("patient", store=slow.spec, vcpus=1, grace_s=60)
    job_id = job(yard)
    uploading(yard, job_id)
    patient = yard.nodes["patient"]
    patient.tell(signal.SIGTERM)
    until(lambda: about(yard, "patient").get("state") == "DRAINING", "it drains")
    slow.flow()
    assert yard.ended(job_id).state == "SUCCEEDED"
    yard.forget_node("patient")
    yard.start_node("a", **_NODE, store=slow.spec)


@pytest.mark.full
def test_a_node_that_drains_gives_back_what_takes_longer_to_upload(yard: TestYard, slow: Slow) -> None:
    yard.forget_node("a")
    yard.start_node("hasty", store=slow.spec, vcpus=1, grace_s=0)
    job_id = job(yard)
    uploading(yard, job_id)
    yard.nodes["hasty"].tell(signal.SIGTERM)
    until(lambda: about(yard, "hasty").get("state") == "DRAINING", "it has no patience")
    slow.flow()
    yard.forget_node("hasty")
    record = yard.store.record(job_id)
    assert (str(record.state), record.reason) == ("RUNNABLE", "the node drained")
    yard.start_node("a", **_NODE, store=slow.spec)
    assert yard.ended(job_id).state == "SUCCEEDED"
