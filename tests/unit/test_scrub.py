"""A node looks at its copies and near objects again: a bad one is found, goes, and is given to no job any more."""

from __future__ import annotations

import errno
import io
import logging
import os
from pathlib import Path

import pytest

from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.gathered import stage_gathered
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.copies.scrub import Pace, Scrub, ScrubCounts
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.tiered import Tiered
from batchyard.cache.tree import put_tree


class Node:
    def __init__(self, folder: Path) -> None:
        self.near_store, self.far = MemoryStore(), MemoryStore()
        index = Index(folder)
        self.near = Bounded(self.near_store, index, 1 << 24)
        self.near.count()
        self.tiered = Tiered(self.near, self.far)
        self.blobs = BlobStore(self.tiered, KeyRing.new())
        self.copies = LocalCopies(self.blobs, index, [Folder(folder, 1 << 24)])
        self.scrub = Scrub(self.copies, self.near)

    def round(self, *tenants: str) -> ScrubCounts:
        while self.scrub.step(tenants):
            pass
        return self.scrub.counts


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "copies").mkdir()
    return Node(tmp_path / "copies")


def tree_in(folder: Path) -> Path:
    (folder / "in" / "sub").mkdir(parents=True)
    (folder / "in" / "sub" / "a").write_bytes(b"content of a")
    (folder / "in" / "run").write_bytes(b"#!")
    (folder / "in" / "run").chmod(0o755)
    (folder / "in" / "link").symlink_to("sub/a")
    return folder / "in"


def spoil(path: Path) -> None:
    """As a disk might: nobody is told."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_is_whole_stays(node: Node, tmp_path: Path) -> None:
    file, tree = node.blobs.put_bytes(b"x" * 5000), put_tree(node.blobs, tree_in(tmp_path))
    node.copies.stage(file, "job")
    node.copies.stage(tree, "job")
    gathered = stage_gathered(node.copies, {"0": file, "1": tree}, "o", "job", stopped=lambda: False)
    node.tiered.settle(10)
    counts = node.round()
    assert (counts.bad, counts.unknown) == (0, 0)
    assert counts.bytes > 10_000
    assert (gathered / "0" / "o").read_bytes() == b"x" * 5000
    assert len(node.near.held()) == 3


def test_copies_of_all_tenants_are_known_for_what_they_are(node: Node, tmp_path: Path) -> None:
    lab = node.copies.of("lab")
    lab.stage(lab.blobs.put_bytes(b"of the lab"), "job")
    lab.stage(put_tree(lab.blobs, tree_in(tmp_path)), "job")
    assert node.round("lab").bad == 0
    counts = node.round()  # its queue is gone
    assert (counts.bad, counts.unknown) == (0, 1)
    assert len(node.copies.held.copies()) == 2


def test_a_directory_without_a_manifest_is_compared_with_what_it_was(node: Node, tmp_path: Path) -> None:
    file, tree = node.blobs.put_bytes(b"x" * 5000), put_tree(node.blobs, tree_in(tmp_path))
    gathered = stage_gathered(node.copies, {"0": file, "1": tree}, "o", "job", stopped=lambda: False)
    node.copies.unpin("job")
    assert node.round().bad == 0
    (gathered / "0").chmod(0o755)
    spoil(gathered / "0" / "o")
    assert node.round().bad == 1
    assert not gathered.exists()


@pytest.mark.parametrize("where", [".", "sub/a", "run", "mode", "new", "link"])
def test_a_damaged_copy_is_removed_and_fetched_again(node: Node, tmp_path: Path, where: str) -> None:
    blob = node.blobs.put_bytes(b"right") if where == "." else put_tree(node.blobs, tree_in(tmp_path))
    path = node.copies.stage(blob, "job").path
    node.copies.unpin("job")
    if where != ".":
        for folder, _, _ in os.walk(path):
            os.chmod(folder, 0o755)
    if where == "mode":
        (path / "sub" / "a").chmod(0o755)
    elif where == "new":
        (path / "more").write_bytes(b"")
    elif where == "link":
        (path / "link").unlink()
    else:
        spoil(path if where == "." else path / where)
    assert node.round().bad == 1
    assert node.copies.counts.held_bytes == 0
    assert os.listdir(path.parents[1] / "trash") == []
    again = node.copies.stage(blob, "job")
    assert not again.here
    assert node.round().bad == 1


def test_a_damaged_copy_in_use_is_reported_and_given_to_nobody_else(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    blob = node.blobs.put_bytes(b"right")
    path = node.copies.stage(blob, "runs").path
    spoil(path)
    with path.open("rb") as mounted:
        with caplog.at_level(logging.ERROR):
            assert node.round().bad == 1
        assert "running jobs read it" in caplog.text
        assert mounted.read() != b"right"
    trash = path.parents[1] / "trash"
    assert len(os.listdir(trash)) == 1  # as mounted
    again = node.copies.stage(blob, "next")
    assert again.path.read_bytes() == b"right"
    node.copies.unpin("next")
    assert len(os.listdir(trash)) == 1
    node.copies.unpin("runs")
    assert os.listdir(trash) == []
    assert path.read_bytes() == b"right"


def test_a_damaged_near_object_is_removed_and_the_durable_one_is_not(node: Node) -> None:
    blob = node.blobs.put_bytes(b"right" * 1000)
    node.tiered.settle(10)
    name = node.blobs.name(blob.digest)
    data = bytearray(node.near_store.stat(name) or 0)
    with node.near_store.get(name) as reader:
        reader.readinto(memoryview(data))
    data[-1] ^= 1
    node.near_store.delete(name)
    node.near_store.put_if_absent(name, io.BytesIO(data), len(data))
    assert node.round().bad == 1
    assert node.near_store.stat(name) is None
    assert node.near.held() == []
    assert node.blobs.read_bytes(blob.digest, 5000) == b"right" * 1000


def test_what_is_evicted_while_it_is_looked_at_is_no_damage(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = node.blobs.put_bytes(b"right")
    node.copies.stage(blob, "job")
    node.copies.unpin("job")
    real = node.copies.held.copies()
    node.copies.held.condemn(*real[0])
    monkeypatch.setattr(node.copies.held, "copies", lambda: real)
    assert node.round().bad == 0


def test_a_scrub_keeps_its_pace() -> None:
    waits: list[float] = []
    pace = Pace(2**20, waits.append)
    pace.spend(2**19)
    pace.spend(2**21)
    assert waits == [0.5, 2.0]


def test_a_copy_that_was_made_since_a_bad_one_was_read_stays(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = node.blobs.put_bytes(b"right")
    spoil(node.copies.stage(blob, "job").path)
    hashed = node.scrub._hashed

    def slow(path: Path) -> str:
        found = hashed(path)
        node.copies.stage(blob, "job")  # sees the change, and fetches it again
        return found

    monkeypatch.setattr(node.scrub, "_hashed", slow)
    assert node.round().bad == 0
    assert node.copies.stage(blob, "job").here


def test_a_copy_that_the_disk_does_not_give_any_more_is_removed(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = node.blobs.put_bytes(b"right")
    path = node.copies.stage(blob, "job").path
    node.copies.unpin("job")

    def broken(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(node.scrub, "_hashed", broken)
    assert node.round().bad == 1
    assert not path.exists()
