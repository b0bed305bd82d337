"""What is in an archive is a copy like any other: made once, pinned, charged, evicted, and known again."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull, InputError, StoreUnavailable
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.copies.folder import Folder, charge_of
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree
from batchyard.worker.engine.image_archive import small_archive
from yardtest.wait import until

JOB = "job.1"


class Gated(MemoryStore):
    """Counts reads; each waits until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = 0
        self.gate, self.reading = threading.Event(), threading.Event()
        self.gate.set()

    def get(self, name: str) -> AbstractContextManager[Readable]:
        self.gets += 1
        self.reading.set()
        assert self.gate.wait(30)
        return super().get(name)


@pytest.fixture
def store() -> Gated:
    return Gated()


@pytest.fixture
def blobs(store: Gated) -> BlobStore:
    return BlobStore(store, KeyRing.new())


def opened(root: Path, blobs: BlobStore, limit: int = 1 << 30) -> LocalCopies:
    """In a folder for `limit` bytes, and one in front of it, for memory, with room for little."""
    folder = Folder(root, limit)
    return LocalCopies(blobs, Index(root), [Folder(root / "memory", 64 << 10, place="memory"), folder])


def archive(blobs: BlobStore, bytes_: int = 5000) -> str:
    return blobs.put_bytes(gzip.compress(small_archive({"a": b"x" * bytes_, "d/b": b"y"}))).digest


def test_a_second_job_finds_what_the_first_one_had_unpacked(tmp_path: Path, blobs: BlobStore, store: Gated) -> None:
    copies, digest = opened(tmp_path, blobs), archive(blobs)
    first = copies.unpack(digest, JOB)
    assert (first.path / "d" / "b").read_bytes() == b"y"
    assert not first.here
    os.remove(copies.stage(digest, "other").path)  # the archive itself is not needed any more
    gets = store.gets
    second = copies.unpack(digest, "job.2")
    assert (second.path, second.here, store.gets) == (first.path, True, gets)
    assert copies.moved("job.2").here == 1


def test_file_and_unpacked_copy_of_one_digest_are_two(tmp_path: Path, blobs: BlobStore) -> None:
    copies, digest = opened(tmp_path, blobs), archive(blobs)
    paths = {copies.stage(digest, JOB).path, copies.unpack(digest, JOB).path}
    assert sorted(path.is_dir() for path in paths) == [False, True]


def test_it_is_read_only_charged_and_known_after_a_restart(tmp_path: Path, blobs: BlobStore, store: Gated) -> None:
    copies, digest = opened(tmp_path, blobs), archive(blobs, 200_000)
    path = copies.unpack(digest, JOB).path
    assert [oct(p.stat().st_mode & 0o777) for p in (path, path / "d", path / "a")] == ["0o555", "0o555", "0o444"]
    archived = charge_of(copies.stage(digest, JOB).path)
    assert copies.counts.held_bytes == charge_of(path) + archived
    copies.close()
    gets = store.gets
    assert opened(tmp_path, blobs).unpack(digest, JOB).here
    assert store.gets == gets


def test_many_at_once_unpack_once_and_each_hears_how_far_it_is(tmp_path: Path, blobs: BlobStore, store: Gated) -> None:
    copies, digest = opened(tmp_path, blobs), archive(blobs)
    store.gate.clear()
    heard: list[list[tuple[int, int]]] = [[] for _ in range(4)]

    def hears(n: int) -> Callable[[int, int], None]:
        return lambda done, total: heard[n].append((done, total))

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(copies.unpack, digest, f"job.{n}", hears(n)) for n in range(4)]
        assert store.reading.wait(10)
        key = next(key for key in copies._flights if key.startswith("unpacked/"))
        until(lambda: len(copies._flights[key]._ears) == 4, "all wait for one")
        store.gate.set()
        found = [one.result(20) for one in asked]
    assert sorted(one.here for one in found) == [False, True, True, True]
    assert store.gets == 1
    for one in heard:
        done, total = one[-1]
        assert done == total > 0


def test_what_is_no_archive_is_named_and_leaves_nothing(tmp_path: Path, blobs: BlobStore) -> None:
    copies = opened(tmp_path, blobs)
    text = blobs.put_bytes(b"hello" * 1000).digest
    with pytest.raises(InputError, match=rf"blob {text} cannot be unpacked: it is no archive"):
        copies.unpack(text, JOB)
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a").write_text("x")
    tree = put_tree(blobs, tmp_path / "t")
    with pytest.raises(InputError, match="is a directory already; leave out unpack"):
        copies.unpack(tree.digest, JOB)
    assert list((tmp_path / "unpacked").iterdir()) == list((tmp_path / "trash").iterdir()) == []
    assert not copies.is_pinned("sha256:" + "0" * 64)


def test_one_that_has_no_room_ends_early_and_gives_all_back(tmp_path: Path, blobs: BlobStore) -> None:
    copies, digest = opened(tmp_path, blobs, 100 << 10), archive(blobs, 300_000)
    with pytest.raises(DiskFull, match="give it more with --copies-gib"):
        copies.unpack(digest, JOB)
    assert list((tmp_path / "unpacked").iterdir()) == []
    assert copies.counts.held_bytes == sum(charge_of(p) for p in (tmp_path / "memory" / "file").iterdir())


def test_what_was_used_least_goes_for_what_is_unpacked_and_pins_hold(tmp_path: Path, blobs: BlobStore) -> None:
    copies = opened(tmp_path, blobs, 400 << 10)
    first, second, third = (archive(blobs, n) for n in (150_000, 150_001, 150_002))
    kept, gone = copies.unpack(first, JOB).path, copies.unpack(second, "job.2").path
    copies.unpin("job.2")
    copies.unpack(third, "job.3")
    assert kept.exists()
    assert not gone.exists()
    assert copies.counts.held_bytes <= (400 + 64) << 10


def test_a_store_that_is_away_is_tried_again(tmp_path: Path, blobs: BlobStore) -> None:
    digest = archive(blobs)

    class Away(MemoryStore):
        def get(self, name: str) -> AbstractContextManager[Readable]:
            raise StoreUnavailable("away")

    copies = opened(tmp_path, BlobStore(Away(), KeyRing.new()))
    with pytest.raises(StoreUnavailable):
        copies.unpack(digest, JOB)
    assert copies._flights == {}


def test_a_copy_that_was_half_unpacked_when_the_node_died_goes_at_the_next_start(tmp_path: Path) -> None:
    blobs = BlobStore(DirectoryStore(tmp_path / "store"), KeyRing.new())
    opened(tmp_path / "c", blobs).close()
    half = tmp_path / "c" / "unpacked" / (".new-" + "0" * 64)
    (half / "d").mkdir(parents=True)
    copies = opened(tmp_path / "c", blobs)
    assert not half.exists()
    assert copies.counts.held_bytes == 0
