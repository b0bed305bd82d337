"""A node with all levels of the cache: bytes move once, what runs keeps its inputs, a near store may go away."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker import keys
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.worker import memory
from yardtest.wait import until
from yardtest.yard import TestYard, running_yard

MIB = 1 << 20


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    config = {"lease_s": 10}  # a restarted node finds its leases
    with running_yard(tmp_path_factory.mktemp("levels"), image, nodes=0, config=config) as yard:
        folder = yard.directory
        yard.start_node(
            "a",
            near=folder / "near",
            near_gib=0.05,
            scratch=folder / "scratch",
            copies_gib=8 / 1024,
            copies_memory_mib=4,
        )
        yield yard


@pytest.fixture
def blobs(yard: TestYard) -> BlobStore:
    return BlobStore(DirectoryStore(yard.blobs), yard.ring)


def log_of(blobs: BlobStore, result: dict[str, Any]) -> str:
    return blobs.read_bytes(result["log"], MIB).decode()


def cache_of(yard: TestYard, node: str = "a") -> dict[str, int]:
    told: dict[str, int] = json.loads(yard.redis.hget(keys.node(node), "cache") or "{}")
    return told


def test_inputs_move_once_and_it_is_told_where_from(yard: TestYard, blobs: BlobStore) -> None:
    one, two = (blobs.put_bytes(os.urandom(MIB)).digest for _ in range(2))
    first = yard.shell("cat /in/* | wc -c", inputs={"/in/one": one, "/in/two": two}).get(timeout=60)
    assert "2 inputs staged: 2.1 MB fetched, 0 of 2 already here" in log_of(blobs, first)
    three = blobs.put_bytes(os.urandom(MIB)).digest
    again = yard.shell("true", inputs={"/in/one": one, "/in/two": two, "/in/three": three}).get(timeout=60)
    assert "3 inputs staged: 1.0 MB fetched, 2 of 3 already here" in log_of(blobs, again)
    until(lambda: cache_of(yard).get("misses") == 3, "the node tells of its cache")
    told = cache_of(yard)
    assert told["hits"] >= 2
    assert told["fetched_bytes"] == 3 * MIB
    assert told["far_bytes"] > 3 * MIB
    assert (yard.directory / "scratch" / "jobs").is_dir()
    assert memory.folder_of(yard.state_of("a")).is_dir()


def test_what_was_evicted_comes_back_from_the_near_store(yard: TestYard, blobs: BlobStore) -> None:
    many = [blobs.put_bytes(os.urandom(3 * MIB)).digest for _ in range(6)]
    for digest in many:
        yard.shell("true", inputs={"/in/x": digest}).get(timeout=60)
    until(lambda: cache_of(yard)["evictions"], "something was evicted")
    before = cache_of(yard)
    assert before["held_bytes"] <= 12 * MIB
    shutil.move(yard.blobs / "objects", yard.blobs / "away")
    try:
        counted = yard.send("sh", "-c", "wc -c </in/x >&2", inputs={"/in/x": many[0]})
        until(lambda: cache_of(yard)["near_bytes"] > before["near_bytes"], "it is read from the near store")
    finally:
        shutil.move(yard.blobs / "away", yard.blobs / "objects")
    assert counted.get(timeout=120)["exit_code"] == 0


def test_a_job_that_cannot_have_its_inputs_beside_those_of_others_says_so(yard: TestYard, blobs: BlobStore) -> None:
    large = blobs.put_bytes(bytes(9 * MIB)).digest
    reason = yard.reason(yard.shell("true", inputs={"/in/x": large}))
    assert "give it more with --copies-gib" in reason
    assert 'input "/in/x"' in reason


def test_inputs_of_a_container_that_goes_on_stay_over_a_restart(yard: TestYard, blobs: BlobStore) -> None:
    digest = blobs.put_bytes(b"needed" * 1000).digest
    stop = yard.shared / "stop"
    script = "until [ -e /shared/stop ]; do sleep 0.1; done; wc -c </in/x"
    inputs = {"/in/x": digest, "/shared": f"file://{yard.shared}"}
    job_id = yard.send_quietly(script, inputs=inputs)
    yard.running(job_id)
    yard.kill9(yard.nodes["a"])
    yard.start_node("a")
    for _ in range(6):  # more than there is room for
        yard.shell("true", inputs={"/in/y": blobs.put_bytes(os.urandom(3 * MIB)).digest}).get(timeout=60)
    until(lambda: cache_of(yard)["evictions"], "something was evicted")
    stop.touch()
    record = yard.ended(job_id)
    assert (record.state, record.losses) == ("SUCCEEDED", 0)
    assert "6000" in log_of(blobs, yard.result(job_id))
    yard.nothing_left()


def test_all_goes_on_without_the_near_store(yard: TestYard, blobs: BlobStore) -> None:
    near: Path = yard.directory / "near"
    shutil.move(near, yard.directory / "gone")
    try:
        result = yard.shell(
            "cp /in/x /work/y", inputs={"/in/x": blobs.put_bytes(os.urandom(MIB)).digest}, outputs={"y": "/work/y"}
        ).get(timeout=60)
        assert blobs.has(result["outputs"]["y"]["digest"])
    finally:
        shutil.move(yard.directory / "gone", near)
    yard.healthy()


def test_a_node_that_ends_in_order_leaves_no_copy_in_memory(yard: TestYard) -> None:
    in_memory = memory.folder_of(yard.state_of("a"))
    assert any((in_memory / "file").iterdir())
    assert yard.nodes["a"].end() == 0
    assert not in_memory.exists()
    yard.start_node("a")
    yard.healthy()
