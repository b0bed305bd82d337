"""Trees in real stores: few objects, whole directories, and the same words for what is damaged as for any blob."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pytest

from batchyard.broker.errors import IntegrityError, NotFound
from batchyard.broker.seal import KeyRing
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.protocol import Store
from batchyard.cache.stores.s3 import S3Store
from batchyard.cache.tree import build_tree, put_tree, read_tree


@pytest.fixture(params=["memory", "directory", "minio", "versitygw"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    server = request.getfixturevalue(request.param)
    return S3Store(server.access(), f"trees-{secrets.token_hex(8)}", create=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """200 files, 23 MiB together, and a large one."""
    top = tmp_path / "in"
    for number in range(200):
        path = top / f"d{number % 7}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 1200))
    (top / "large").write_bytes(os.urandom(1 << 20))
    return top


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_directory_of_small_files_is_few_objects_and_comes_back(store: Store, source: Path, tmp_path: Path) -> None:
    blobs = BlobStore(store, KeyRing.new())
    blob = put_tree(blobs, source)
    assert len(list(store.names())) <= 5  # manifest, the large file, packs of 8 MiB and more
    assert put_tree(blobs, source) == blob
    assert blobs.counters.known_puts == blobs.counters.puts == len(list(store.names()))
    build_tree(blobs, read_tree(blobs, blob.digest), tmp_path / "out", at_once=3)
    assert content_of(tmp_path / "out") == content_of(source)


def test_a_pack_that_was_swapped_for_another_is_deleted_and_told(store: Store, source: Path, tmp_path: Path) -> None:
    ring = KeyRing.new()
    blobs = BlobStore(store, ring)
    tree = read_tree(blobs, put_tree(blobs, source).digest)
    one, other = (ring.name(pack.digest) for pack in tree.packs[:2])
    size = store.stat(other)
    assert size is not None
    store.delete(one)
    with store.get(other) as reader:
        assert store.put_if_absent(one, reader, size)
    with pytest.raises(IntegrityError, match=f"{tree.packs[0].digest} .*; it was deleted"):
        build_tree(blobs, tree, tmp_path / "out")
    with pytest.raises(NotFound, match="put it first"):
        build_tree(blobs, tree, tmp_path / "out")
    assert blobs.counters.corrupt == 1
    assert not (tmp_path / "out").exists()
    put_tree(blobs, source)
    build_tree(blobs, tree, tmp_path / "out")
