"""A rotation of the keys of any store: no object is written again, and all open with the new key alone."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from batchyard.broker.errors import NotFound, StoreUnavailable
from batchyard.broker.seal import HEADER_BYTES, KeyRing, SealUnknown
from batchyard.cache import wraps
from batchyard.cache.rewrap import Rewrap, first_bytes
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.protocol import Store
from batchyard.cache.stores.s3 import S3Store
from yardtest.keys import retired
from yardtest.minio import S3Server

BLOBS = 40


@pytest.fixture(params=["memory", "directory", "minio", "versitygw"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    server: S3Server = request.getfixturevalue(request.param)
    return S3Store(server.access(), f"test-{secrets.token_hex(8)}", create=True)


def test_all_blobs_open_with_the_new_key_alone_after_a_rotation_that_was_cut_off(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wraps, "SHARD_RECORDS", 8)
    old = KeyRing.new()
    there = {BlobStore(store, old).put_bytes(data).digest: data for data in (os.urandom(99) for _ in range(BLOBS - 1))}
    large = os.urandom(3 << 20)
    there[BlobStore(store, old).put_bytes(large).digest] = large
    both = old.rotated()

    def cut_off(at: int) -> Callable[[int, int], None]:
        def stop(done: int, of: int) -> None:
            if done == at:
                raise StoreUnavailable("cut off")

        return stop

    for at in (1, 3):
        with pytest.raises(StoreUnavailable, match="cut off"):
            Rewrap(store, both).run(on_shard=cut_off(at))
    done = Rewrap(store, both).run()
    assert done.skipped_shards == 3
    new = retired(both, old.current)
    late = BlobStore(store, both).put_bytes(b"put meanwhile")
    blobs = BlobStore(store, new)
    assert all(blobs.read_bytes(digest, len(large)) == data for digest, data in there.items())
    assert blobs.read_bytes(late.digest, 100) == b"put meanwhile"
    assert Rewrap(store, both).census() == {both.current: BLOBS + 1}
    assert {new.name(digest) for digest in there} | {new.name(late.digest)} | Rewrap(store, new).own_names() == set(
        store.names()
    )
    with pytest.raises(SealUnknown):
        BlobStore(store, old).read_bytes(late.digest, 100)


def test_the_beginning_of_an_object_is_read(store: Store) -> None:
    ring = KeyRing.new()
    digest = BlobStore(store, ring).put_bytes(os.urandom(3 << 20)).digest
    header = first_bytes(store, ring.name(digest), HEADER_BYTES)
    assert ring.digest_in(header, ring.name(digest)) == digest
    assert len(first_bytes(store, ring.name(digest), 1000)) == 1000
    with pytest.raises(NotFound):
        first_bytes(store, "a" * 64, 10)
