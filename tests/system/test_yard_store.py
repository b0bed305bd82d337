"""Which store is the yard's: the first one counts, and no typo makes another."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker import keys
from batchyard.broker.endpoints import Endpoints, absolute_store
from batchyard.broker.errors import InvalidConfig, StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.broker.store import Yard
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.worker import services
from batchyard.worker.yard_store import open_yard_store
from yardtest.minio import S3Server
from yardtest.up import COMMAND
from yardtest.yard import TestYard, running_yard


@pytest.fixture
def yard(fresh_redis_url: str, tmp_path: Path) -> Yard:
    return Yard(fresh_redis_url, KeyRing.create(tmp_path / "keys.json"))


def opened(yard: Yard, spec: str, *, new: bool = False) -> None:
    open_yard_store(yard, spec, new=new)


def test_the_first_store_is_the_yards_and_another_is_refused_and_not_made(yard: Yard, tmp_path: Path) -> None:
    opened(yard, str(tmp_path / "store"))
    known = yard.store_id()
    opened(yard, str(tmp_path / "store"))
    assert yard.store_id() == known
    with pytest.raises(InvalidConfig, match=r"there is no blob store at .*stor\"; correct --store"):
        opened(yard, str(tmp_path / "stor"))
    assert not (tmp_path / "stor").exists()
    DirectoryStore(tmp_path / "empty")
    with pytest.raises(InvalidConfig, match="has no id"):
        opened(yard, str(tmp_path / "empty"))
    assert list(DirectoryStore(tmp_path / "empty").names()) == []


def test_a_store_is_given_up_for_another_only_when_told_so(yard: Yard, tmp_path: Path) -> None:
    opened(yard, str(tmp_path / "one"))
    opened(yard, str(tmp_path / "two"), new=True)
    with pytest.raises(InvalidConfig, match="has another id"):
        opened(yard, str(tmp_path / "one"))
    opened(yard, str(tmp_path / "two"))
    opened(yard, str(tmp_path / "one"), new=True)
    opened(yard, str(tmp_path / "one"))


def test_of_ids_that_come_at_once_the_first_counts(yard: Yard) -> None:
    assert yard.keep_store_id("one") == "one"
    assert yard.keep_store_id("two") == "one"
    assert yard.keep_store_id("two", replace=True) == yard.store_id() == "two"
    yard.forget_store()
    assert yard.store_id() is None


def test_a_redis_that_was_emptied_takes_the_stores_id(yard: Yard, tmp_path: Path) -> None:
    opened(yard, str(tmp_path / "store"))
    known = yard.store_id()
    yard.redis.flushdb()
    opened(yard, str(tmp_path / "store"))
    assert yard.store_id() == known


def test_an_id_that_does_not_open_is_nobodys(yard: Yard, tmp_path: Path) -> None:
    opened(yard, str(tmp_path / "store"))
    [path] = [p for p in (tmp_path / "store" / "objects").rglob("*") if p.is_file()]
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(InvalidConfig, match="does not open"):
        opened(yard, str(tmp_path / "store"))


def test_a_bucket_is_seen_like_a_folder(yard: Yard, minio: S3Server) -> None:
    opened(yard, minio.spec("yardstore-one"))
    with pytest.raises(InvalidConfig, match="has no id"):
        opened(yard, minio.spec("yardstore-none"))
    assert not minio.access().client().bucket_exists("yardstore-none")
    opened(yard, minio.spec("yardstore-one"))


def test_without_redis_nothing_is_made(tmp_path: Path) -> None:
    yard = Yard("redis://127.0.0.1:1/0", KeyRing.create(tmp_path / "keys.json"))
    with pytest.raises(StoreUnavailable, match="nobody can say whether this is the yard's store"):
        opened(yard, str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_doctor_tells_a_store_that_is_not_the_yards(yard: Yard, tmp_path: Path) -> None:
    ends = Endpoints(broker_url=yard.url, result_backend=yard.url, key_file=str(tmp_path / "keys.json"))
    opened(yard, str(tmp_path / "store"))
    found = {one.name: one for one in services.blob_store(str(tmp_path / "store"), ends)}
    assert {one.status for one in found.values()} == {"ok"}
    assert "store id" in found
    DirectoryStore(tmp_path / "other")
    found = {one.name: one for one in services.blob_store(str(tmp_path / "other"), ends)}
    assert found["store id"].status == "fail"


@pytest.mark.parametrize("spec", ["s3:/bucket", "file:///x", "S3://bucket", "http://h/b"])
def test_what_looks_like_a_url_and_is_no_store_is_no_folder_either(spec: str) -> None:
    with pytest.raises(InvalidConfig, match="is no store"):
        absolute_store(spec)


# -- nodes
@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, image: str) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image) as made:
        yield made


def node(yard: TestYard, name: str, store: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """A node that must not start."""
    named = ["--broker", yard.url, "--key-file", str(yard.key_file), "--store", str(store), "--name", name]
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BATCHYARD_")}
    words = [*COMMAND, "worker", *named, "--state", str(folder / "state"), "--copies-memory-mib", "0"]
    return subprocess.run(words, capture_output=True, text=True, check=False, env=environ, timeout=60)


def test_a_node_with_another_store_ends_with_2_and_says_so(running: TestYard, tmp_path: Path) -> None:
    ran = node(running, "b", tmp_path / "typo", tmp_path)
    assert ran.returncode == 2
    assert "error: this is not the yard's store: there is no blob store at" in ran.stderr
    assert not (tmp_path / "typo").exists()
    assert "ready" not in ran.stdout + ran.stderr


def test_a_node_with_the_name_of_a_live_one_ends_with_2_and_harms_nobody(running: TestYard, tmp_path: Path) -> None:
    name = next(iter(running.nodes))
    ran = node(running, name, running.blobs, tmp_path)
    assert ran.returncode == 2
    assert f'error: a node "{name}" is alive at ' in ran.stderr
    assert "ready" not in ran.stdout + ran.stderr
    assert running.redis.zscore(keys.NODES, name) is not None
    running.healthy()


def test_a_node_takes_the_name_of_one_that_died_elsewhere_once_it_is_silent(running: TestYard, tmp_path: Path) -> None:
    running.start_node("c")
    running.kill9(running.nodes["c"])
    running.start_node("c", state=tmp_path / "elsewhere")
    running.forget_node("c")


def test_a_store_that_was_lost_is_no_empty_one(running: TestYard) -> None:
    name = next(iter(running.nodes))
    shutil.move(running.blobs, running.directory / "away")
    try:
        assert running.nodes[name].end() == 0
        ran = node(running, name, running.blobs, running.directory / "other")
        assert ran.returncode == 2
        assert not running.blobs.exists()
    finally:
        shutil.move(running.directory / "away", running.blobs)
        running.start_node(name)
    running.healthy()
