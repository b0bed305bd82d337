"""A directory of very many small files: put into a MinIO, staged by a node as one bind, and used by a job."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.cache.digest import Blob
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.s3 import S3Store
from batchyard.cache.tree import put_tree
from yardtest.minio import S3Server
from yardtest.yard import TestYard, running_yard

BUCKET = f"trees-{secrets.token_hex(6)}"
SHORTLY_S = 60.0


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory, image: str, minio: S3Server) -> Iterator[TestYard]:
    with running_yard(tmp_path_factory.mktemp("yard") / "y", image, nodes=0) as running:
        running.start_node("a", store=minio.spec(BUCKET), copies_memory_mib=0)
        yield running
        running.nothing_left()
        running.healthy()


@pytest.fixture(scope="module")
def blobs(yard: TestYard, minio: S3Server) -> BlobStore:
    return BlobStore(S3Store(minio.access(), BUCKET, create=True), yard.ring)


def a_directory(top: Path, count: int) -> Path:
    """Files of 1 KiB, each with other bytes, 1,000 to a folder."""
    for number in range(count):
        folder = top / f"{number // 1000:03d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        (folder / f"{number:06d}").write_bytes(f"{number:08d}\n".encode() * 113 + b"1234567")
    return top


def used(yard: TestYard, blobs: BlobStore, tree: Blob, count: int) -> None:
    """A job sees every file of it, and may not write there; the node has it as one copy."""
    script = (
        f"set -e; cd /in/d; test $(find . -type f | wc -l) = {count}; ! touch new; ! touch 000/new;"
        f"test $(find . -type f -size 1k | wc -l) = {count}; head -n 1 {(count - 1) // 1000:03d}/{count - 1:06d}"
    )
    result = yard.shell(script, inputs={"/in/d": tree.digest}).get(timeout=SHORTLY_S)
    log = blobs.read_bytes(result["log"], 1 << 20).decode()
    assert f"{count - 1:08d}" in log
    assert "1 input staged" in log


def test_two_thousand_files_are_few_objects_and_one_bind(yard: TestYard, blobs: BlobStore, tmp_path: Path) -> None:
    tree = put_tree(blobs, a_directory(tmp_path / "in", 2000))
    assert blobs.counters.puts == 2  # a pack and the manifest
    used(yard, blobs, tree, 2000)


def test_small_files_of_an_output_are_an_input_of_the_next_job(yard: TestYard, blobs: BlobStore) -> None:
    script = "mkdir /work/o /work/o/sub; for n in $(seq 200); do echo $n >/work/o/sub/$n; done"
    output = yard.shell(script, outputs={"o": "/work/o"}).get(timeout=SHORTLY_S)["outputs"]["o"]
    assert output["kind"] == "tree"
    result = yard.shell("cat /in/o/sub/* | sort -n | tail -1", inputs={"/in/o": output["digest"]})
    assert "200" in blobs.read_bytes(result.get(timeout=SHORTLY_S)["log"], 1 << 20).decode()


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_hundred_thousand_files_are_staged_in_well_under_a_minute(
    yard: TestYard, blobs: BlobStore, tmp_path: Path
) -> None:
    source = a_directory(tmp_path / "in", 100_000)
    began_s, puts = time.monotonic(), blobs.counters.puts
    tree = put_tree(blobs, source)
    put_s = time.monotonic() - began_s
    assert blobs.counters.puts - puts < 30
    began_s = time.monotonic()
    used(yard, blobs, tree, 100_000)
    staged_s = time.monotonic() - began_s
    assert (put_s < SHORTLY_S, staged_s < SHORTLY_S) == (True, True), f"put {put_s:.0f} s, staged {staged_s:.0f} s"
