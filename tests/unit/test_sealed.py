from __future__ import annotations

import io
import os
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.errors import InputError, IntegrityError, NotFound, StoreUnavailable
from batchyard.broker.seal import KeyRing, Readable, SealUnknown
from batchyard.cache.digest import Blob, copy_hashed, digest_of, parse_digest
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore

MARK = b"PLANTED-PLAINTEXT-THAT-MUST-NOT-BE-FOUND"


@pytest.fixture
def ring() -> KeyRing:
    return KeyRing.new()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def blobs(store: MemoryStore, ring: KeyRing) -> BlobStore:
    return BlobStore(store, ring)


def damage(store: MemoryStore, name: str, at: int = -1) -> None:
    with store.get(name) as reader:
        data = bytearray(store.stat(name) or 0)
        reader.readinto(memoryview(data))
    data[at] ^= 1
    store.delete(name)
    store.put_if_absent(name, io.BytesIO(data), len(data))


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 2_500_000, 20 << 20])
def test_a_file_comes_back_whole_and_read_only(blobs: BlobStore, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    blob = blobs.put_file(tmp_path / "in")
    assert blob == Blob(digest=digest_of(data), size=size, kind="file")
    blobs.fetch(blob.digest, size, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_mode & 0o7777 == 0o444
    assert blobs.read_bytes(blob.digest, size) == data
    with blobs.open(blob.digest) as reader:
        assert reader.read() == data
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def test_a_second_put_moves_no_bytes(blobs: BlobStore, store: MemoryStore) -> None:
    blob = blobs.put_bytes(b"data")
    moved = blobs.counters.sealed_bytes_in
    assert blobs.put_bytes(b"data") == blob
    assert blobs.counters.sealed_bytes_in == moved
    assert (blobs.counters.puts, blobs.counters.known_puts) == (1, 1)
    assert len(list(store.names())) == 1


def test_planted_bytes_digests_and_names_are_found_nowhere_in_the_store(ring: KeyRing, tmp_path: Path) -> None:
    data = (MARK + os.urandom(100)) * 20_000
    (tmp_path / "in").write_bytes(data)
    blobs = BlobStore(DirectoryStore(tmp_path / "store"), ring)
    kept = [blobs.put_file(tmp_path / "in"), blobs.put_bytes(MARK)]
    objects = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(objects) == 2
    for path in objects:
        content = path.read_bytes()
        assert MARK[:16] not in content
        assert data[40:56] not in content
        for blob in kept:
            assert blob.digest[7:23].encode() not in content
            assert bytes.fromhex(blob.digest[7:23]) not in content
            assert blob.digest[7:23] not in str(path)


@pytest.mark.parametrize("at", [0, 30, 75, -1])
def test_a_damaged_blob_is_refused_deleted_and_counted(
    blobs: BlobStore, store: MemoryStore, ring: KeyRing, tmp_path: Path, at: int
) -> None:
    blob = blobs.put_bytes(b"data" * 1000)
    damage(store, ring.name(blob.digest), at)
    with pytest.raises(IntegrityError, match=blob.digest):
        blobs.fetch(blob.digest, blob.size, tmp_path / "out")
    assert os.listdir(tmp_path) == []
    assert not blobs.has(blob.digest)
    assert blobs.counters.corrupt == 1
    assert blobs.put_bytes(b"data" * 1000) == blob
    assert blobs.read_bytes(blob.digest, blob.size) == b"data" * 1000


def test_a_damaged_end_is_refused_to_a_stream_reader(blobs: BlobStore, store: MemoryStore, ring: KeyRing) -> None:
    blob = blobs.put_bytes(os.urandom(2_500_000))
    damage(store, ring.name(blob.digest))
    with pytest.raises(IntegrityError, match="deleted"), blobs.open(blob.digest) as reader:
        reader.read()
    assert not blobs.has(blob.digest)


def test_blobs_that_were_swapped_in_the_store_are_refused(blobs: BlobStore, store: MemoryStore, ring: KeyRing) -> None:
    one, two = blobs.put_bytes(b"one"), blobs.put_bytes(b"two")
    with store.get(ring.name(two.digest)) as reader:
        data = bytearray(store.stat(ring.name(two.digest)) or 0)
        reader.readinto(memoryview(data))
    store.delete(ring.name(one.digest))
    store.put_if_absent(ring.name(one.digest), io.BytesIO(data), len(data))
    with pytest.raises(IntegrityError, match=one.digest):
        blobs.read_bytes(one.digest, 100)
    assert blobs.read_bytes(two.digest, 100) == b"two"


def test_a_wrong_size_of_the_caller_harms_nothing(blobs: BlobStore, tmp_path: Path) -> None:
    blob = blobs.put_bytes(b"data")
    with pytest.raises(InputError, match="has 4 bytes, not 5"):
        blobs.fetch(blob.digest, 5, tmp_path / "out")
    with pytest.raises(InputError, match="at most 3"):
        blobs.read_bytes(blob.digest, 3)
    assert os.listdir(tmp_path) == []
    assert blobs.has(blob.digest)
    assert blobs.counters.corrupt == 0


def test_a_blob_under_a_key_that_is_not_here_is_left_alone(store: MemoryStore, ring: KeyRing) -> None:
    later = ring.rotated()
    blob = BlobStore(store, later).put_bytes(b"data")
    old = BlobStore(store, ring)
    with pytest.raises(SealUnknown, match=later.current):
        old.read_bytes(blob.digest, 100)
    assert old.counters.corrupt == 0
    assert BlobStore(store, later).read_bytes(blob.digest, 100) == b"data"


def test_one_bad_read_deletes_nothing_and_asks_to_try_again(store: MemoryStore, ring: KeyRing) -> None:
    class OnceBad(MemoryStore):
        bad = True

        def get(self, name: str) -> AbstractContextManager[Readable]:
            if self.bad:
                self.bad = False
                return io.BytesIO(b"an error page of a proxy")
            return store.get(name)

    blob = BlobStore(store, ring).put_bytes(b"data")
    blobs = BlobStore(OnceBad(), ring)
    with pytest.raises(StoreUnavailable, match="try again"):
        blobs.read_bytes(blob.digest, 100)
    assert blobs.read_bytes(blob.digest, 100) == b"data"


def test_a_bad_read_of_a_blob_under_a_key_that_is_not_here_deletes_nothing(ring: KeyRing) -> None:
    class OnceBad(MemoryStore):
        bad = True

        def get(self, name: str) -> AbstractContextManager[Readable]:
            if self.bad:
                self.bad = False
                return io.BytesIO(b"an error page of a proxy")
            return super().get(name)

    store, later = OnceBad(), ring.rotated()
    blob = BlobStore(store, later).put_bytes(b"data")
    with pytest.raises(SealUnknown, match=later.current):
        BlobStore(store, ring).read_bytes(blob.digest, 100)
    assert BlobStore(store, later).read_bytes(blob.digest, 100) == b"data"


def test_an_unrelated_integrity_error_in_the_body_blames_nothing(blobs: BlobStore) -> None:
    blob = blobs.put_bytes(b"data")
    with pytest.raises(IntegrityError, match=r"^something else$"), blobs.open(blob.digest):
        raise IntegrityError("something else")
    assert blobs.has(blob.digest)


def test_what_is_not_there_is_not_found(blobs: BlobStore, tmp_path: Path) -> None:
    missing = digest_of(b"missing")
    assert not blobs.has(missing)
    with pytest.raises(NotFound, match=missing):
        blobs.fetch(missing, None, tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_only_files_can_be_put(blobs: BlobStore, tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "thing")
    with pytest.raises(InputError, match="is not a file"):
        blobs.put_file(tmp_path / "thing")
    with pytest.raises(InputError, match="No such file"):
        blobs.put_file(tmp_path / "missing")


def test_a_file_that_grows_under_the_put_keeps_nothing(ring: KeyRing, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * 3_000_000)

    class Growing(MemoryStore):
        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            with path.open("ab") as file:
                file.write(b"more")
            return super().put_if_absent(name, source, size)

    store = Growing()
    with pytest.raises(IntegrityError, match="changed while"):
        BlobStore(store, ring).put_file(path)
    assert list(store.names()) == []


def test_a_file_that_changes_while_it_is_hashed_is_refused_also_if_the_blob_is_known(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.utime(path, (1, 1))
    blobs.put_file(path)

    def hash_then_change(*args: Any, **options: Any) -> tuple[str, int]:
        result = copy_hashed(*args, **options)
        path.write_bytes(b"new")
        return result

    monkeypatch.setattr("batchyard.cache.sealed.copy_hashed", hash_then_change)
    with pytest.raises(IntegrityError, match="changed while"):
        blobs.put_file(path)


def test_threads_that_put_and_read_one_blob_agree(ring: KeyRing, tmp_path: Path) -> None:
    blobs = BlobStore(DirectoryStore(tmp_path), ring)
    data = os.urandom(300_000)
    barrier = threading.Barrier(6)
    right: list[bool] = []

    def use() -> None:
        barrier.wait(10)
        right.append(blobs.read_bytes(blobs.put_bytes(data).digest, len(data)) == data)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert right == [True] * 6
    assert (blobs.counters.puts, blobs.counters.known_puts) == (1, 5)


@pytest.mark.parametrize(
    "text", ["", "sha256:", "sha256:" + "A" * 64, "md5:" + "a" * 64, "sha256:" + "a" * 65, None, 7]
)
def test_what_is_not_a_digest_is_refused(text: object) -> None:
    with pytest.raises(InputError, match='is not a digest; a digest is "sha256:" and 64'):
        parse_digest(text)


def test_a_blob_survives_json(blobs: BlobStore) -> None:
    blob = blobs.put_bytes(b"data", "tree")
    assert Blob.from_json(blob.as_json()) == blob
    for change in ({"size": -1}, {"size": True}, {"kind": "dir"}, {"digest": "x"}):
        with pytest.raises(InputError):
            Blob.from_json({**blob.as_json(), **change})


def test_a_folder_store_that_is_unmounted_is_away_and_not_empty(tmp_path: Path) -> None:
    store, name = DirectoryStore(tmp_path / "store"), "a" * 64
    (tmp_path / "store").rename(tmp_path / "gone")
    with pytest.raises(StoreUnavailable, match="mounted"), store.get(name):
        pass
    with pytest.raises(StoreUnavailable, match="mounted"):
        store.stat(name)
    with pytest.raises(StoreUnavailable, match="mounted"):
        store.delete(name)
    with pytest.raises(StoreUnavailable):
        list(store.names())


def test_a_good_object_that_was_put_again_meanwhile_is_not_deleted(ring: KeyRing) -> None:
    class Mended(MemoryStore):
        """Somebody puts the object again after the second look."""

        reads = 0

        def get(self, name: str) -> AbstractContextManager[Readable]:
            self.reads += 1
            if self.reads == 4:
                self.delete(name)
                BlobStore(self, ring).put_bytes(b"data")
            return super().get(name)

    store = Mended()
    blobs = BlobStore(store, ring)
    digest = blobs.put_bytes(b"data").digest
    damage(store, ring.name(digest))
    with pytest.raises(StoreUnavailable, match="try again"):
        blobs.read_bytes(digest, 100)
    assert blobs.read_bytes(digest, 100) == b"data"
    assert blobs.counters.corrupt == 0
