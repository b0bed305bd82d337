from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from batchyard.broker.errors import OutputError, OutputMissing
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.digest import Blob, digest_of
from batchyard.cache.outputs import publish, size_of
from batchyard.cache.packs import SMALL_BYTES
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
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


# Patterns


def names_in(blobs: BlobStore, blob: Blob) -> list[str]:
    assert blob.kind == "tree"
    return [entry.path for entry in read_tree(blobs, blob.digest).entries]


@pytest.fixture
def many(work: Path) -> Path:
    for name in ("out/a.csv", "out/b.csv", "out/notes.txt", "out/deep/c.csv", "out/deep/.hidden.csv", "out/deep/d/e"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(b"12345")
    (work / "out" / "empty").mkdir()
    (work / "out" / "table.csv").unlink()
    return work


@pytest.mark.parametrize(
    ("path", "names", "size"),
    [
        ("out/*.csv", ["a.csv", "b.csv"], 10),
        ("out/**/*.csv", ["a.csv", "b.csv", "deep", "deep/c.csv"], 15),
        ("out/*/c.csv", ["deep", "deep/c.csv"], 5),
        ("**/c.csv", ["out", "out/deep", "out/deep/c.csv"], 5),
        ("out/d*", ["deep", "deep/.hidden.csv", "deep/c.csv", "deep/d", "deep/d/e"], 15),
        ("out/e*", ["empty"], 0),
        ("out/deep/**", [".hidden.csv", "c.csv", "d", "d/e"], 15),
        ("out/[ab].csv", ["a.csv", "b.csv"], 10),
    ],
)
def test_what_matches_a_pattern_is_kept_as_a_tree(
    blobs: BlobStore, many: Path, path: str, names: list[str], size: int
) -> None:
    assert names_in(blobs, publish(blobs, many, path, "some")) == names
    assert size_of(many, path, "some") == size


def test_nothing_that_does_not_match_reaches_the_store(blobs: BlobStore, many: Path) -> None:
    (many / "out" / "notes.txt").write_bytes(b"not this")
    publish(blobs, many, "out/*.csv", "some")
    assert blobs.counters.puts == 2
    assert not blobs.has(digest_of(b"not this"))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("out/*.parquet", "nothing matches /work/out/*.parquet"),
        ("out/**/x", "nothing matches /work/out/**/x"),
        ("nodir/*", "/work/nodir was not written by the job"),
    ],
)
def test_a_pattern_that_matches_nothing_is_as_a_missing_file(
    blobs: BlobStore, many: Path, path: str, reason: str
) -> None:
    for act in (lambda: publish(blobs, many, path, "some"), lambda: size_of(many, path, "some")):
        with pytest.raises(OutputMissing) as caught:
            act()
        assert str(caught.value) == f'output "some": {reason}'


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("out/a.csv/*", "/work/out/a.csv is a file, not a directory"),
        ("../*", "leads out of /work"),
        ("/etc/*", "is absolute"),
    ],
)
def test_a_pattern_of_no_directory_is_refused(blobs: BlobStore, many: Path, path: str, reason: str) -> None:
    with pytest.raises(OutputError, match=f'output "some": .*{reason}'):
        publish(blobs, many, path, "some")


def test_a_pattern_follows_no_symlink_and_takes_none_that_leaves(blobs: BlobStore, many: Path) -> None:
    (many / "out" / "up").symlink_to("../..")
    (many / "out" / "host").symlink_to("/etc")
    (many / "out" / "leak.csv").symlink_to("../../secret")
    with pytest.raises(OutputError, match=r"'leak\.csv' is a symlink to '\.\./\.\./secret', which leaves the tree"):
        publish(blobs, many, "out/*.csv", "some")
    (many / "out" / "leak.csv").unlink()
    (many / "out" / "also.csv").symlink_to("a.csv")
    assert names_in(blobs, publish(blobs, many, "out/**/*.csv", "some")) == [
        "a.csv", "also.csv", "b.csv", "deep", "deep/c.csv",
    ]  # fmt: skip
    for path in ("up/*", "out/up/*", "out/host/pass*"):
        with pytest.raises(OutputError):
            publish(blobs, many, path, "some")
    with pytest.raises(OutputMissing):
        publish(blobs, many, "out/*/secret", "some")
    assert not blobs.has(digest_of(b"secret of the host"))


def test_names_that_are_no_text_and_names_that_look_like_patterns_are_kept(blobs: BlobStore, work: Path) -> None:
    for name in (b"\xff.csv", b"[x].csv", b"*.csv", b"a\nb.csv", b"-rf.csv"):
        Path(os.fsdecode(bytes(work) + b"/" + name)).write_bytes(name)
    assert names_in(blobs, publish(blobs, work, "*.csv", "some")) == [
        "*.csv", "-rf.csv", "[x].csv", "a\nb.csv", "\udcff.csv",
    ]  # fmt: skip
    assert names_in(blobs, publish(blobs, work, "[*].csv", "some")) == ["*.csv"]


def test_a_special_file_that_matches_is_refused_and_one_that_does_not_is_left_out(blobs: BlobStore, many: Path) -> None:
    os.mkfifo(many / "out" / "pipe")
    assert names_in(blobs, publish(blobs, many, "out/*.csv", "some")) == ["a.csv", "b.csv"]
    with pytest.raises(OutputError, match="'pipe' is a fifo"):
        publish(blobs, many, "out/p*", "some")


def test_a_pattern_over_something_too_deep_says_so(blobs: BlobStore, work: Path) -> None:
    (work / "/".join("d" * 150)).mkdir(parents=True)
    with pytest.raises(OutputError, match="too deep"):
        publish(blobs, work, "**/x", "some")


# Sizes


@pytest.mark.parametrize(("path", "size"), [("out/table.csv", 4), ("out", 4), (".", 4)])
def test_the_size_of_an_output_is_that_of_its_files(work: Path, path: str, size: int) -> None:
    assert size_of(work, path, "table") == size


def test_the_size_of_what_is_not_there_is_no_size(work: Path) -> None:
    with pytest.raises(OutputMissing, match=r'output "table": /work/x was not written by the job'):
        size_of(work, "x", "table")
