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

from batchyard.broker.errors import DiskFull, InputError, IntegrityError, InvalidConfig, NotFound
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob, Digest, digest_of
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
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


PLENTY = 1 << 40
JOB = "job.1"


def opened(
    root: Path, blobs: BlobStore, limit: int = PLENTY, *, memory: int | None = None, boot_id: str | None = None
) -> LocalCopies:
    """Copies in a folder, and in a second one beside it that stands for memory."""
    root.parent.mkdir(exist_ok=True)
    folders = [Folder(root, limit, boot_id=boot_id)]
    if memory is not None:
        folders.insert(0, Folder(root.with_name("memory"), memory, place="memory", boot_id=boot_id))
    return LocalCopies(blobs, Index(root.parent, boot_id=boot_id), folders)  # not in it: a small disk is unmounted


@pytest.fixture
def copies(blobs: BlobStore, tmp_path: Path) -> Iterator[LocalCopies]:
    copies = opened(tmp_path / "l1", blobs)
    yield copies
    copies.close()


def stage(copies: LocalCopies, blob: Blob | Digest, owner: str = JOB) -> Path:
    return copies.stage(blob, owner).path


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
    path = stage(copies, blob)
    assert path.read_bytes() == b"data"
    assert mode(path) == 0o444
    assert stage(copies, blob.digest) == path
    assert (store.gets, copies.counts.hits, copies.counts.fetched_bytes) == (1, 1, 4)


def test_others_on_the_host_cannot_enter_the_root(copies: LocalCopies, blobs: BlobStore) -> None:
    path = stage(copies, blobs.put_bytes(b"data"))
    assert mode(path.parent.parent) == 0o700


def test_a_tree_is_staged_as_a_read_only_directory(copies: LocalCopies, blobs: BlobStore, tmp_path: Path) -> None:
    blob = a_tree(blobs, tmp_path / "in")
    path = stage(copies, blob)
    assert (path / "link").read_bytes() == b"run"
    assert [mode(path), mode(path / "sub"), mode(path / "sub" / "run")] == [0o555] * 3
    assert stage(copies, blob) == path
    assert (copies.counts.hits, copies.counts.fetched_bytes) == (1, 3)


def test_of_a_bare_digest_the_content_tells_whether_it_is_a_tree(
    copies: LocalCopies, blobs: BlobStore, tmp_path: Path
) -> None:
    blob = a_tree(blobs, tmp_path / "in")
    path = stage(copies, blob.digest)
    assert path.is_dir()
    assert stage(copies, blob) == path
    assert stage(copies, Blob(digest=blob.digest, size=blob.size, kind="file")).is_file()
    assert stage(copies, blob.digest) == path
    with pytest.raises(InputError, match="is not a tree"):
        stage(copies, Blob(digest=blobs.put_bytes(b"data").digest, size=4, kind="tree"))


def test_a_wrong_size_fails_only_who_gave_it(copies: LocalCopies, blobs: BlobStore) -> None:
    blob = blobs.put_bytes(b"data")
    for _ in range(2):
        with pytest.raises(InputError, match="has 4 bytes, not 5"):
            stage(copies, Blob(digest=blob.digest, size=5))
        assert stage(copies, blob).read_bytes() == b"data"


def test_threads_that_want_one_blob_share_one_fetch(copies: LocalCopies, blobs: BlobStore, store: Gated) -> None:
    blob = blobs.put_bytes(os.urandom(100_000))
    store.gate.clear()
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(stage(copies, blob))) for _ in range(6)]
    for thread in threads:
        thread.start()
    assert store.reading.wait(30)
    store.gate.set()
    for thread in threads:
        thread.join(30)
    assert len(paths) == 6
    assert len(set(paths)) == 1
    assert (store.gets, copies.counts.fetched_bytes) == (1, 100_000)


def test_two_blobs_are_fetched_at_the_same_time(copies: LocalCopies, blobs: BlobStore, store: Gated) -> None:
    one, two = blobs.put_bytes(b"one"), blobs.put_bytes(b"two")
    store.gate.clear()
    slow = threading.Thread(target=copies.stage, args=(one, JOB))
    slow.start()
    assert store.reading.wait(30)
    store.reading.clear()
    other = threading.Thread(target=copies.stage, args=(two, JOB))
    other.start()
    assert store.reading.wait(30)
    store.gate.set()
    slow.join(30)
    other.join(30)
    assert copies.counts.fetched_bytes == 6


def test_a_failure_is_told_and_the_next_call_tries_again(copies: LocalCopies, blobs: BlobStore) -> None:
    missing = digest_of(b"late")
    with pytest.raises(NotFound):
        stage(copies, missing)
    blobs.put_bytes(b"late")
    assert stage(copies, missing).read_bytes() == b"late"


def test_a_damaged_blob_is_never_staged(copies: LocalCopies, blobs: BlobStore, store: Gated, tmp_path: Path) -> None:
    blob = blobs.put_bytes(b"data")
    [name] = store.names()
    size = store.stat(name) or 0
    store.delete(name)
    store.put_if_absent(name, io.BytesIO(b"\0" * size), size)
    with pytest.raises(IntegrityError, match=blob.digest):
        stage(copies, blob)
    assert list((tmp_path / "l1" / "file").iterdir()) == []


def test_a_second_node_on_the_same_root_is_refused(copies: LocalCopies, blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="in use by another node"):
        opened(tmp_path / "l1", blobs)
    copies.close()
    opened(tmp_path / "l1", blobs).close()


def test_copies_survive_a_restart_but_not_another_boot(blobs: BlobStore, store: Gated, tmp_path: Path) -> None:
    file, tree = blobs.put_bytes(b"data"), a_tree(blobs, tmp_path / "in")
    for boot_id, expected in (("one", 3), ("one", 3), ("two", 6), ("two", 6)):
        copies = opened(tmp_path / "l1", blobs, boot_id=boot_id)
        assert stage(copies, file).read_bytes() == b"data"
        assert (stage(copies, tree) / "sub" / "run").read_bytes() == b"run"
        copies.close()
        assert store.gets == expected


def test_what_stands_in_a_copys_place_goes(copies: LocalCopies, blobs: BlobStore, tmp_path: Path) -> None:
    blob = a_tree(blobs, tmp_path / "in")
    place = tmp_path / "l1" / "tree" / blobs.name(blob.digest)
    place.mkdir()
    (place / "other").touch()
    assert sorted(os.listdir(stage(copies, blob))) == ["link", "sub"]
    assert os.listdir(tmp_path / "l1" / "trash") == []


def test_a_pin_is_its_owners(copies: LocalCopies) -> None:
    one, two = digest_of(b"one"), digest_of(b"two")
    copies.pin("a", [one])
    with copies.pinned("b", [one, two, one]):
        assert copies.is_pinned(one)
        assert copies.is_pinned(two)
    assert copies.is_pinned(one)
    assert not copies.is_pinned(two)
    copies.unpin("a")
    copies.unpin("a")
    assert not copies.is_pinned(one)
    with pytest.raises(InputError), copies.pinned("b", [one, "nonsense"]):
        pass
    assert not copies.is_pinned(one)


NODE = """
import sys
from pathlib import Path
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.copies.folder import Folder
from batchyard.cache.index import Index
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
LocalCopies(blobs, Index(top), [Folder(top / "l1", 1 << 30)]).stage(digest, "job")
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
    copies = opened(tmp_path / "l1", blobs)
    assert os.listdir(tmp_path / "l1" / "tree") == []
    assert sorted(os.listdir(stage(copies, blob))) == ["0", "1", "2"]
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


@pytest.mark.parametrize("kind", ["file", "tree", "packed"])
def test_a_full_disk_is_named_and_leaves_nothing(blobs: BlobStore, small_disk: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "in").mkdir()
    for number in range(20 if kind == "packed" else 1):
        (tmp_path / "in" / f"big{number}").write_bytes(os.urandom((100 << 10) if kind == "packed" else (2 << 20)))
    big = blobs.put_file(tmp_path / "in" / "big0") if kind == "file" else put_tree(blobs, tmp_path / "in")
    copies = opened(small_disk, blobs)
    with pytest.raises(DiskFull, match="no space left for"):
        stage(copies, big)
    assert os.listdir(small_disk / "file") == os.listdir(small_disk / "tree") == []
    assert stage(copies, blobs.put_bytes(b"small")).read_bytes() == b"small"
    copies.close()
