from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from batchyard.broker.errors import OutputError
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.digest import Blob, digest_of
from batchyard.cache.memory import MemoryStore
from batchyard.cache.outputs import publish
from batchyard.cache.packs import SMALL_BYTES
from batchyard.cache.sealed import BlobStore
from batchyard.cache.tree import fetch_tree, read_tree


@pytest.fixture
def blobs() -> BlobStore:
    return BlobStore(MemoryStore(), KeyRing.new())


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(b"secret of the host")
    work = tmp_path / "work"
    (work / "out" / "deep").mkdir(parents=True)
    (work / "out" / "table.csv").write_bytes(b"a,b\n")
    return work


@pytest.mark.parametrize("path", ["out/table.csv", "./out//table.csv", "out/deep/../table.csv"])
def test_a_file_is_kept(blobs: BlobStore, work: Path, path: str) -> None:
    blob = publish(blobs, work, path, "table")
    assert (blob.digest, blob.size, blob.kind) == (digest_of(b"a,b\n"), 4, "file")
    assert blobs.read_bytes(blob.digest, 10) == b"a,b\n"


@pytest.mark.parametrize("path", ["out", "out/"])
def test_a_directory_is_kept_as_a_tree(blobs: BlobStore, work: Path, tmp_path: Path, path: str) -> None:
    blob = publish(blobs, work, path, "all")
    assert blob.kind == "tree"
    fetch_tree(blobs, blob.digest, tmp_path / "back")
    assert (tmp_path / "back" / "table.csv").read_bytes() == b"a,b\n"
    assert (tmp_path / "back" / "deep").is_dir()


def test_the_whole_work_directory_can_be_an_output(blobs: BlobStore, work: Path) -> None:
    assert publish(blobs, work, ".", "all").kind == "tree"


@pytest.mark.parametrize("path", ["x", "nodir/x", "out/x"])
def test_a_missing_output_is_named_as_the_job_sees_it(blobs: BlobStore, work: Path, path: str) -> None:
    with pytest.raises(OutputError) as caught:
        publish(blobs, work, path, "table")
    assert str(caught.value) == f'output "table": /work/{path} was not written by the job'


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret", "leads out of /work"),
        ("out/../../secret", "leads out of /work"),
        ("/etc/passwd", "is absolute"),
        ("out/\0", "NUL"),
        ("out/table.csv/x", "is a file, not a directory"),
        ("a/" * 200, "deeper than"),
    ],
)
def test_a_path_that_leads_out_is_refused(blobs: BlobStore, work: Path, path: str, reason: str) -> None:
    with pytest.raises(OutputError, match=f'output "table": .*{reason}'):
        publish(blobs, work, path, "table")


@pytest.mark.parametrize(
    ("link", "target", "path"),
    [
        ("leak", "../secret", "leak"),
        ("leak", "/etc/passwd", "leak"),
        ("up", "..", "up/secret"),
        ("slash", "/", "slash/etc/passwd"),
        ("latest", "out/table.csv", "latest"),
        ("dir", "out", "dir/table.csv"),
    ],
)
def test_a_symlink_on_the_way_is_refused_wherever_it_leads(
    blobs: BlobStore, work: Path, link: str, target: str, path: str
) -> None:
    (work / link).symlink_to(target)
    with pytest.raises(OutputError, match=f'output "table": /work/{link} is a symlink'):
        publish(blobs, work, path, "table")


def test_a_symlink_in_an_output_directory_that_leaves_it_is_refused(blobs: BlobStore, work: Path) -> None:
    (work / "out" / "leak").symlink_to("../../secret")
    with pytest.raises(OutputError, match=r"output \"all\": 'leak' is a symlink to '\.\./\.\./secret', which leaves"):
        publish(blobs, work, "out", "all")


def test_a_fifo_is_refused_without_waiting(blobs: BlobStore, work: Path) -> None:
    os.mkfifo(work / "pipe")
    with pytest.raises(OutputError, match="/work/pipe is a fifo, not a file or directory"):
        publish(blobs, work, "pipe", "table")


class Meddling(MemoryStore):
    """Does something to the job's files between the pass that hashes and the pass that seals."""

    def __init__(self, path: Path, data: bytes) -> None:
        super().__init__()
        self._path, self._data = path, data

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        self._path.write_bytes(self._data)
        return super().put_if_absent(name, source, size)


@pytest.mark.parametrize("data", [b"", b"a,b", b"x,y\n", b"a,b\nc,d\n"])
@pytest.mark.parametrize("path", ["out/table.csv", "out"])
def test_a_file_that_changes_while_it_is_read_is_refused(work: Path, data: bytes, path: str) -> None:
    table = work / "out" / "table.csv"
    if path == "out":  # of a directory, a small file is read once
        table.write_bytes(table.read_bytes() * SMALL_BYTES)
        data *= SMALL_BYTES
    store = Meddling(table, data)
    with pytest.raises(OutputError, match=r'output "table": .*table\.csv.* changed while it was read'):
        publish(BlobStore(store, KeyRing.new()), work, path, "table")
    assert list(store.names()) == []


def test_swapping_a_directory_for_a_symlink_never_lets_out_what_is_outside(work: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret of the host")
    inside = work / "out" / "sub"
    inside.mkdir()
    (inside / "file").write_bytes(b"mine")
    (work / "out" / "link").symlink_to("../../outside")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for one, two in ((inside, work / "out" / "kept"), (work / "out" / "link", inside)):
                os.rename(one, two)
            os.rename(inside, work / "out" / "link")
            os.rename(work / "out" / "kept", inside)

    blobs, kept = BlobStore(MemoryStore(), KeyRing.new()), set[Blob]()
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(300):
            for path in ("out/sub/file", "out/sub"):
                try:
                    kept.add(publish(blobs, work, path, "table"))
                except OutputError:
                    continue
    finally:
        done.set()
        swapper.join(30)
    trees = [read_tree(blobs, blob.digest) for blob in kept if blob.kind == "tree"]
    found = {blob.digest for blob in kept} | {file.digest for tree in trees for file in tree.files}
    assert digest_of(b"mine") in found
    assert digest_of(b"secret of the host") not in found
