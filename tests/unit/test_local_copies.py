from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull, InputError, IntegrityError, InvalidConfig, NotFound, StoreUnavailable
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.copies import LocalCopies
from batchyard.cache.digest import Blob, digest_of
from batchyard.cache.disk import DirectoryStore
from batchyard.cache.memory import MemoryStore
from batchyard.cache.sealed import BlobStore
from batchyard.cache.tree import put_tree


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


@pytest.fixture
def copies(blobs: BlobStore, tmp_path: Path) -> Iterator[LocalCopies]:
    copies = LocalCopies(tmp_path / "l1", blobs)
    yield copies
    copies.close()


def a_tree(blobs: BlobStore, path: Path) -> Blob:
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "run").write_bytes(b"run")
    (path / "sub" / "run").chmod(0o700)
    (path / "link").symlink_to("sub/run")
    return put_tree(blobs, path)


def mode(path: Path) -> int:
    return path.lstat().st_mode & 0o7777


def test_a_file_is_staged_once_and_read_only(copies: LocalCopies, blobs: BlobStore, store: Gated) -> None:
    blob = blobs.put_bytes(b"data")
    path = copies.stage(blob)
    assert path.read_bytes() == b"data"
    assert mode(path) == 0o444
    assert copies.stage(blob.digest) == path
    assert (store.gets, copies.hits, copies.bytes_staged) == (1, 1, 4)


def test_others_on_the_host_cannot_enter_the_root(copies: LocalCopies, blobs: BlobStore) -> None:
    path = copies.stage(blobs.put_bytes(b"data"))
    assert mode(path.parent.parent) == 0o700


def test_a_tree_is_staged_as_a_read_only_directory(copies: LocalCopies, blobs: BlobStore, tmp_path: Path) -> None:
    blob = a_tree(blobs, tmp_path / "in")
    path = copies.stage(blob)
    assert (path / "link").read_bytes() == b"run"
    assert [mode(path), mode(path / "sub"), mode(path / "sub" / "run")] == [0o555] * 3
    assert copies.stage(blob) == path
    assert (copies.hits, copies.bytes_staged) == (1, 3)


def test_of_a_bare_digest_the_content_tells_whether_it_is_a_tree(
    copies: LocalCopies, blobs: BlobStore, tmp_path: Path
) -> None:
    blob = a_tree(blobs, tmp_path / "in")
    path = copies.stage(blob.digest)
    assert path.is_dir()
    assert copies.stage(blob) == path
    assert copies.stage(Blob(digest=blob.digest, size=blob.size, kind="file")).is_file()
    assert copies.stage(blob.digest) == path
    with pytest.raises(InputError, match="is not a tree"):
        copies.stage(Blob(digest=blobs.put_bytes(b"data").digest, size=4, kind="tree"))


def test_a_wrong_size_fails_only_who_gave_it(copies: LocalCopies, blobs: BlobStore) -> None:
    blob = blobs.put_bytes(b"data")
    for _ in range(2):
        with pytest.raises(InputError, match="has 4 bytes, not 5"):
            copies.stage(Blob(digest=blob.digest, size=5))
        assert copies.stage(blob).read_bytes() == b"data"


def test_threads_that_want_one_blob_share_one_fetch(copies: LocalCopies, blobs: BlobStore, store: Gated) -> None:
    blob = blobs.put_bytes(os.urandom(100_000))
    store.gate.clear()
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(copies.stage(blob))) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert store.reading.wait(30)
    store.gate.set()
    for thread in threads:
        thread.join(30)
    assert len(paths) == 6
    assert len(set(paths)) == 1
    assert (store.gets, copies.bytes_staged) == (1, 100_000)


def test_two_blobs_are_fetched_at_the_same_time(copies: LocalCopies, blobs: BlobStore, store: Gated) -> None:
    one, two = blobs.put_bytes(b"one"), blobs.put_bytes(b"two")
    store.gate.clear()
    slow = threading.Thread(target=copies.stage, args=(one,))
    slow.start()
    assert store.reading.wait(30)
    store.reading.clear()
    other = threading.Thread(target=copies.stage, args=(two,))
    other.start()
    assert store.reading.wait(30)
    store.gate.set()
    slow.join(30)
    other.join(30)
    assert copies.bytes_staged == 6


def test_a_failure_is_told_and_the_next_call_tries_again(copies: LocalCopies, blobs: BlobStore) -> None:
    missing = digest_of(b"late")
    with pytest.raises(NotFound):
        copies.stage(missing)
    blobs.put_bytes(b"late")
    assert copies.stage(missing).read_bytes() == b"late"


def test_a_damaged_blob_is_never_staged(copies: LocalCopies, blobs: BlobStore, store: Gated, tmp_path: Path) -> None:
    blob = blobs.put_bytes(b"data")
    [name] = store.names()
    size = store.stat(name) or 0
    store.delete(name)
    store.put_if_absent(name, io.BytesIO(b"\0" * size), size)
    with pytest.raises(IntegrityError, match=blob.digest):
        copies.stage(blob)
    assert list((tmp_path / "l1" / "file").iterdir()) == []


def test_a_second_node_on_the_same_root_is_refused(copies: LocalCopies, blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="in use by another node"):
        LocalCopies(tmp_path / "l1", blobs)
    copies.close()
    LocalCopies(tmp_path / "l1", blobs).close()


def test_copies_survive_a_restart_but_not_another_boot(blobs: BlobStore, store: Gated, tmp_path: Path) -> None:
    file, tree = blobs.put_bytes(b"data"), a_tree(blobs, tmp_path / "in")
    for boot_id, expected in (("one", 3), ("one", 3), ("two", 6), ("two", 6)):
        copies = LocalCopies(tmp_path / "l1", blobs, boot_id=lambda boot_id=boot_id: boot_id)  # type: ignore[misc]
        assert copies.stage(file).read_bytes() == b"data"
        assert (copies.stage(tree) / "sub" / "run").read_bytes() == b"run"
        copies.close()
        assert store.gets == expected


def test_a_tree_that_cannot_take_its_name_leaves_nothing(copies: LocalCopies, blobs: BlobStore, tmp_path: Path) -> None:
    blob = a_tree(blobs, tmp_path / "in")
    place = tmp_path / "l1" / "tree" / blob.digest.removeprefix("sha256:")
    place.symlink_to("nowhere")
    with pytest.raises(StoreUnavailable, match="cannot write"):
        copies.stage(blob)
    assert list(place.parent.iterdir()) == [place]


def test_pins_are_counted(copies: LocalCopies) -> None:
    one, two = digest_of(b"one"), digest_of(b"two")
    copies.pin(one)
    with copies.pinned([one, two]):
        assert copies.is_pinned(one)
        assert copies.is_pinned(two)
    assert copies.is_pinned(one)
    assert not copies.is_pinned(two)
    copies.unpin(one)
    assert not copies.is_pinned(one)
    with pytest.raises(ValueError, match="is not pinned"):
        copies.unpin(one)
    with pytest.raises(InputError), copies.pinned([one, "nonsense"]):
        pass
    assert not copies.is_pinned(one)


NODE = """
import sys
from pathlib import Path
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies import LocalCopies
from batchyard.cache.disk import DirectoryStore
from batchyard.cache.sealed import BlobStore

top, digest = Path(sys.argv[1]), sys.argv[2]

class Slow(DirectoryStore):
    seen = 0
    def get(self, name):
        Slow.seen += 1
        if Slow.seen == 3:  # the manifest, one file, and then
            print("half", flush=True)
            sys.stdin.read()
        return super().get(name)

blobs = BlobStore(Slow(top / "store"), KeyRing.load(top / "keys"))
LocalCopies(top / "l1", blobs).stage(digest)
"""


def test_a_node_killed_while_it_stages_leaves_no_copy_and_its_leftovers_are_swept(tmp_path: Path) -> None:
    blobs = BlobStore(DirectoryStore(tmp_path / "store"), KeyRing.create(tmp_path / "keys"))
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / str(number)).write_bytes(os.urandom(100))
    blob = put_tree(blobs, tmp_path / "in")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", NODE, str(tmp_path), blob.digest],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as node:
        assert node.stdout is not None
        assert node.stdout.readline() == b"half\n"
        node.send_signal(signal.SIGKILL)
    left = os.listdir(tmp_path / "l1" / "tree")
    assert left
    assert all(name.startswith(".new-") for name in left)
    copies = LocalCopies(tmp_path / "l1", blobs)
    assert os.listdir(tmp_path / "l1" / "tree") == []
    assert sorted(os.listdir(copies.stage(blob))) == ["0", "1", "2"]
    copies.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root")
    disk = tmp_path / "small"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mount of a tmpfs is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("kind", ["file", "tree"])
def test_a_full_disk_is_named_and_leaves_nothing(blobs: BlobStore, small_disk: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "big").write_bytes(os.urandom(2 << 20))
    big = put_tree(blobs, tmp_path / "in") if kind == "tree" else blobs.put_file(tmp_path / "in" / "big")
    copies = LocalCopies(small_disk, blobs)
    with pytest.raises(DiskFull, match="no space left for"):
        copies.stage(big)
    assert os.listdir(small_disk / "file") == os.listdir(small_disk / "tree") == []
    assert copies.stage(blobs.put_bytes(b"small")).read_bytes() == b"small"
    copies.close()
