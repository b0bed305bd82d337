"""Copies that somebody else changes on the node's disk: no job is given one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.shelf import Entry
from batchyard.cache.stores.counted import Counted
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree
from yardtest.faults.damage import tick

BLOCK = 4096


@pytest.fixture
def store() -> Counted:
    return Counted(MemoryStore())


@pytest.fixture
def blobs(store: Counted) -> BlobStore:
    return BlobStore(store, KeyRing.new())


@pytest.fixture
def start(tmp_path: Path, blobs: BlobStore) -> Callable[[], LocalCopies]:
    opened: list[LocalCopies] = []

    def begin() -> LocalCopies:
        for copies in opened:
            copies.close()
        opened.append(LocalCopies(blobs, Index(tmp_path), [Folder(tmp_path / "scratch", 100 * BLOCK)]))
        return opened[-1]

    return begin


@pytest.fixture
def file(blobs: BlobStore) -> Blob:
    return blobs.put_bytes(b"right")


@pytest.fixture
def tree(blobs: BlobStore, tmp_path: Path) -> Blob:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"right")
    return put_tree(blobs, tmp_path / "in")


def spoil(path: Path) -> None:
    """With the mode and the times of before."""
    tick()
    before = path.stat()
    path.chmod(0o600)
    path.write_bytes(b"wrong")
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_with_other_bytes_is_fetched_again(
    start: Callable[[], LocalCopies], file: Blob, restart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    copies = start()
    spoil(copies.stage(file, "one").path)
    copies = start() if restart else copies
    staged = copies.stage(file, "two")
    assert staged.path.read_bytes() == b"right"
    assert staged.fetched_bytes == 5
    assert "is not what it was made as, and is removed" in caplog.text
    assert copies.counts.held_bytes == BLOCK


@pytest.mark.parametrize("restart", [False, True])
def test_a_tree_with_other_bytes_in_it_is_fetched_again(
    start: Callable[[], LocalCopies], tree: Blob, restart: bool
) -> None:
    copies = start()
    spoil(copies.stage(tree, "one").path / "a")
    copies = start() if restart else copies
    assert (copies.stage(tree, "two").path / "a").read_bytes() == b"right"
    assert copies.counts.held_bytes == 2 * BLOCK


def test_what_jobs_have_mounted_stays_until_they_have_ended(
    start: Callable[[], LocalCopies], tree: Blob, tmp_path: Path
) -> None:
    copies = start()
    path = copies.stage(tree, "one").path
    mounted = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        spoil(path / "a")
        copies.stage(tree, "two")
        copies.unpin("two")
        assert os.listdir(mounted) == ["a"]
        copies.unpin("one")
        assert os.listdir(mounted) == []
        assert os.listdir(tmp_path / "scratch" / "trash") == []
    finally:
        os.close(mounted)


def test_what_was_only_touched_is_read_once_and_not_fetched(
    start: Callable[[], LocalCopies], file: Blob, tree: Blob, store: Counted
) -> None:
    copies = start()
    for path in (copies.stage(file, "one").path, copies.stage(tree, "one").path / "a"):
        tick()
        path.touch()
    gets = store.counts.gets
    assert copies.stage(file, "two").here
    assert store.counts.gets == gets
    assert copies.stage(tree, "two").here
    assert store.counts.gets == gets + 1  # what should be in it
    assert copies.stage(file, "three").here
    assert copies.stage(tree, "three").here
    assert store.counts.gets == gets + 1


def test_copies_of_which_the_index_is_lost_are_read_and_not_fetched(
    start: Callable[[], LocalCopies], file: Blob, tree: Blob, tmp_path: Path, store: Counted
) -> None:
    copies = start()
    for blob in (file, tree):
        copies.stage(blob, "one")
    copies.close()
    for path in tmp_path.glob("index-*"):
        path.unlink()
    copies = start()
    assert copies.counts.held_bytes == 3 * BLOCK
    assert copies.find("file", file.digest, "two") is not None
    assert copies.stage(tree, "two").here
    assert copies.counts.fetched_bytes == 0


def test_what_lies_where_a_copy_would_is_not_taken_for_one(
    start: Callable[[], LocalCopies], blobs: BlobStore, file: Blob, tmp_path: Path
) -> None:
    start()
    planted = tmp_path / "scratch" / "file" / blobs.name(file.digest)
    planted.write_bytes(b"wrong")
    planted.chmod(0o444)
    copies = start()
    assert copies.find("file", file.digest, "one") is None
    assert copies.stage(file, "one").path.read_bytes() == b"right"


def test_a_directory_of_which_nobody_can_tell_what_should_be_in_it_is_made_anew(
    start: Callable[[], LocalCopies], tmp_path: Path
) -> None:
    digest = "sha256:" + "1" * 64

    def land(copies: LocalCopies) -> Path:
        with copies.landing("tree", 2 * BLOCK) as path:
            path.mkdir()
            (path / "a").write_bytes(b"right")
            return copies.adopt("tree", digest, path, 2 * BLOCK, "one")

    copies = start()
    spoil(land(copies) / "a")
    assert copies.find("tree", digest, "two") is None
    assert (land(copies) / "a").read_bytes() == b"right"
    assert copies.find("tree", digest, "two") is not None
    assert copies.counts.held_bytes == 2 * BLOCK


@pytest.mark.parametrize(
    ("column", "value"),
    [("bytes", "x"), ("bytes", -1), ("bytes", None), ("used", 2**63 - 1), ("used", b"\xff"), ("place", b"\xff")],
)
def test_a_value_that_was_never_written_costs_what_is_known_of_one_copy(
    tmp_path: Path, column: str, value: object
) -> None:
    index = Index(tmp_path)
    for number in range(2):
        index.save("copies", "scratch", Entry(key=f"file/{number}", bytes=BLOCK, used=number))
    index.close()
    [path] = tmp_path.glob("*.sqlite")
    db = sqlite3.connect(path)
    db.execute(f"UPDATE entries SET {column} = ? WHERE key = 'file/0'", (value,))
    db.commit()
    db.close()
    assert [entry.key for _, entry in Index(tmp_path).load("copies")] == ["file/1"]
