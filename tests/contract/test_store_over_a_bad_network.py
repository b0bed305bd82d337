"""An S3 store over a network that fails, and over a server whose disk rots: real MinIO and versitygw."""

from __future__ import annotations

import io
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchyard.broker.errors import IntegrityError, StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.protocol import Unreadable
from batchyard.cache.stores.s3 import S3Store
from yardtest.cut import CuttingRelay
from yardtest.minio import S3Server

NAME = "ab" * 32


@pytest.fixture(params=["minio", "versitygw"])
def server(request: pytest.FixtureRequest) -> S3Server:
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def relay(server: S3Server) -> Iterator[CuttingRelay]:
    with CuttingRelay(server.port) as made:
        yield made


@pytest.fixture
def bucket() -> str:
    return f"test-{secrets.token_hex(8)}"


@pytest.fixture
def store(server: S3Server, relay: CuttingRelay, bucket: str) -> S3Store:
    access = replace(server.access(), endpoint_url=f"https://127.0.0.1:{relay.port}")
    return S3Store(access, bucket, create=True, part_bytes=5 << 20)


def read(store: S3Store, name: str) -> bytes:
    pieces, buffer = bytearray(), memoryview(bytearray(1 << 16))
    with store.get(name) as reader:
        while count := reader.readinto(buffer):
            pieces += buffer[:count]
    return bytes(pieces)


def test_a_read_whose_connection_ends_goes_on_where_it_stopped(store: S3Store, relay: CuttingRelay) -> None:
    data = os.urandom(20 << 20)
    store.put_if_absent(NAME, io.BytesIO(data), len(data))
    relay.cut_down = lambda _, seen: seen > 3_000_000
    before = relay.connections
    assert read(store, NAME) == data
    assert relay.connections - before >= 7


def test_a_read_that_gets_no_further_over_a_bad_network_is_no_reason_to_delete(
    store: S3Store, relay: CuttingRelay
) -> None:
    data = os.urandom(16 << 20)
    store.put_if_absent(NAME, io.BytesIO(data), len(data))
    begun = threading.Event()
    relay.cut_down = lambda *_: begun.is_set()
    buffer = memoryview(bytearray(1 << 16))
    with pytest.raises(StoreUnavailable) as raised, store.get(NAME) as reader:
        reader.readinto(buffer)
        begun.set()
        while reader.readinto(buffer):
            pass
    assert not isinstance(raised.value, Unreadable)
    begun.clear()
    assert read(store, NAME) == data


def test_a_read_does_not_go_on_with_another_object(store: S3Store, relay: CuttingRelay) -> None:
    store.put_if_absent(NAME, io.BytesIO(b"a" * (9 << 20)), 9 << 20)
    relay.cut_down = lambda connection, seen: connection <= before and seen > 3_000_000
    before = relay.connections + 8
    with pytest.raises(StoreUnavailable, match="replaced or deleted"), store.get(NAME) as reader:
        buffer = memoryview(bytearray(1 << 20))
        assert reader.readinto(buffer)
        store.delete(NAME)
        store.put_if_absent(NAME, io.BytesIO(b"b" * 1000), 1000)
        while reader.readinto(buffer):
            assert not bytes(buffer).strip(b"a\0")


@pytest.mark.parametrize("size", [3 << 20, 12 << 20])
def test_a_put_whose_connection_ends_in_the_middle_is_sent_again(
    store: S3Store, relay: CuttingRelay, size: int
) -> None:
    data = os.urandom(size)
    first = relay.connections + 1
    relay.cut_up = lambda connection, seen: connection <= first and seen > 2_000_000
    assert store.put_if_absent(NAME, io.BytesIO(data), len(data))
    relay.cut_up = lambda *_: False
    assert read(store, NAME) == data


@pytest.mark.parametrize("size", [1000, 12 << 20])
def test_a_put_whose_answer_is_lost_is_known_as_ours(
    server: S3Server, store: S3Store, relay: CuttingRelay, bucket: str, size: int
) -> None:
    data, there, cut = os.urandom(size), S3Store(server.access(), bucket), 0

    def lose_the_answer_that_makes_it(_: int, seen: int) -> bool:
        nonlocal cut
        if cut < 1 and there.stat(NAME) is not None:
            cut += 1
            return True
        return False

    relay.cut_down = lose_the_answer_that_makes_it
    assert store.put_if_absent(NAME, io.BytesIO(data), len(data)) is True
    assert cut == 1
    assert store.put_if_absent(NAME, io.BytesIO(data), len(data)) is False
    assert read(store, NAME) == data


# A disk that rots


def flip(server: S3Server, bucket: str, name: str, at: float) -> None:
    """Another bit in the middle of what the server keeps on disk of an object; `at`: from 0 to 1."""
    files = [f for f in (server.data / bucket).rglob("*") if f.is_file() and name in str(f)]
    largest = max(files, key=lambda f: f.stat().st_size)
    with largest.open("r+b") as file:
        place = int(largest.stat().st_size * at)
        if largest.name == "xl.meta":  # MinIO keeps small objects at the end of their metadata
            place = largest.stat().st_size - 100
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("size", "at"),
    [  # one in the metadata, one of a single part, one of several
        (1000, 0.01),
        (300_000, 0.7),
        (20_000_000, 0.7),
        *(pytest.param(size, 0.01, marks=pytest.mark.full) for size in (300_000, 5_000_000, 20_000_000)),
        *(pytest.param(size, 0.7, marks=pytest.mark.full) for size in (1000, 5_000_000)),
    ],
)
def test_a_flipped_byte_in_the_store_is_seen_the_blob_deleted_and_put_again(
    server: S3Server, bucket: str, tmp_path: Path, size: int, at: float
) -> None:
    ring = KeyRing.new()
    blobs = BlobStore(S3Store(server.access(), bucket, create=True), ring)
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    blob = blobs.put_file(tmp_path / "in")
    other = blobs.put_bytes(b"other")
    flip(server, bucket, ring.name(blob.digest), at)
    with pytest.raises(IntegrityError, match=f"{blob.digest}.*deleted from the store, put it again"):
        blobs.fetch(blob.digest, blob.size, tmp_path / "out")
    assert os.listdir(tmp_path) == ["in"]
    assert blobs.counters.corrupt == 1
    assert not blobs.has(blob.digest)
    assert blobs.put_file(tmp_path / "in") == blob
    blobs.fetch(blob.digest, blob.size, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert blobs.read_bytes(other.digest, 5) == b"other"


def test_a_blob_that_a_bad_network_cuts_is_not_deleted(store: S3Store, relay: CuttingRelay, tmp_path: Path) -> None:
    blobs = BlobStore(store, KeyRing.new())
    blob = blobs.put_bytes(os.urandom(16 << 20))
    first_new = relay.connections  # the kept one is cut in the middle, those after it at once
    relay.cut_down = lambda connection, seen: connection >= first_new or seen > 3_000_000
    with pytest.raises(StoreUnavailable):
        blobs.fetch(blob.digest, blob.size, tmp_path / "out")
    relay.cut_down = lambda *_: False
    blobs.fetch(blob.digest, blob.size, tmp_path / "out")
    assert blobs.counters.corrupt == 0
