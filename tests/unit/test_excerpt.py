"""One file or directory out of a tree: the right bytes, none of the others, and clear words for what cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.broker.errors import InputError, NotFound
from batchyard.broker.seal import KeyRing
from batchyard.cache import packs
from batchyard.cache.commands import parted
from batchyard.cache.digest import Digest
from batchyard.cache.door import Door
from batchyard.cache.excerpt import fetch_excerpt
from batchyard.cache.packs import SMALL_BYTES
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.counted import Counted
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree, read_tree

LARGE = bytes(range(256)) * (SMALL_BYTES // 256 + 1)


@pytest.fixture
def store() -> Counted:
    return Counted(MemoryStore())


@pytest.fixture
def blobs(store: Counted) -> BlobStore:
    return BlobStore(store, KeyRing.new())


@pytest.fixture
def tree(blobs: BlobStore, tmp_path: Path) -> Digest:
    root = tmp_path / "in"
    (root / "a" / "deep").mkdir(parents=True)
    (root / "a" / "run").write_bytes(b"#!/bin/sh\n")
    (root / "a" / "run").chmod(0o755)
    (root / "a" / "deep" / "large").write_bytes(LARGE)
    (root / "a" / "deep" / "none").touch()
    (root / "a" / "deep" / "link").symlink_to("large")
    (root / "ab").write_bytes(b"not in a")
    (root / "b").mkdir()
    (root / "b" / "out").symlink_to("../ab")
    (root / "latest").symlink_to("a")
    (root / "\x1b[2J").touch()
    (root / "esc").symlink_to("\x1b[2J")
    (root / "large-run").write_bytes(LARGE + b"x")
    (root / "large-run").chmod(0o755)
    return put_tree(blobs, root).digest


@pytest.mark.parametrize(
    ("part", "content", "mode"),
    [
        ("a/run", b"#!/bin/sh\n", 0o755),
        ("ab", b"not in a", 0o644),
        ("a/deep/large", LARGE, 0o644),
        ("large-run", LARGE + b"x", 0o755),
        ("a/deep/none", b"", 0o644),
    ],
)
def test_a_file_comes_alone(
    blobs: BlobStore, tree: Digest, tmp_path: Path, part: str, content: bytes, mode: int
) -> None:
    told: list[int] = []
    assert fetch_excerpt(blobs, tree, part, tmp_path / "out", told.append) == "file"
    assert ((tmp_path / "out").read_bytes(), (tmp_path / "out").stat().st_mode & 0o777) == (content, mode)
    assert sum(told) == len(content)


def test_a_directory_comes_with_what_is_in_it_and_nothing_else(blobs: BlobStore, tree: Digest, tmp_path: Path) -> None:
    assert fetch_excerpt(blobs, tree, "a", tmp_path / "out") == "tree"
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*"))
    assert found == ["deep", "deep/large", "deep/link", "deep/none", "run"]
    assert (tmp_path / "out" / "deep" / "link").read_bytes() == LARGE


def test_only_what_is_needed_is_read(store: Counted, blobs: BlobStore, tree: Digest, tmp_path: Path) -> None:
    before = store.counts.gets
    fetch_excerpt(blobs, tree, "ab", tmp_path / "small")
    assert store.counts.gets - before == 2, "the list and the pack"
    fetch_excerpt(blobs, tree, "a/deep", tmp_path / "deep")
    assert store.counts.gets - before == 4, "the list and the large file"


@pytest.mark.parametrize(
    ("part", "error", "words"),
    [
        ("a/nosuch", NotFound, "has no 'a/nosuch'; `batchyard ls` of it lists what it has"),
        ("latest/run", NotFound, "has no 'latest/run'"),
        ("../in/ab", NotFound, r"has no '\.\./in/ab'"),
        ("latest", InputError, r"'latest' of tree .* is a symlink to 'a'; name that, or get the whole tree"),
        ("esc", InputError, r"is a symlink to '\\x1b\[2J'; name that"),
        ("b", InputError, r"'out' is a symlink to '\.\./ab', which leaves the tree; get the whole one"),
    ],
)
def test_what_cannot_be_had_alone_is_said_and_leaves_nothing(
    blobs: BlobStore, tree: Digest, tmp_path: Path, part: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fetch_excerpt(blobs, tree, part, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_each_file_comes_from_its_own_pack(blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MOST_PACK_BYTES", 100)
    (tmp_path / "in").mkdir()
    for n in range(6):
        (tmp_path / "in" / str(n)).write_bytes(b"%d" % n * 40)
    tree = put_tree(blobs, tmp_path / "in").digest
    assert len(read_tree(blobs, tree).packs) == 3
    for n in range(6):
        fetch_excerpt(blobs, tree, str(n), tmp_path / str(n))
        assert (tmp_path / str(n)).read_bytes() == b"%d" % n * 40


@pytest.mark.parametrize("part", ["ab", "a", "a/deep/large"])
def test_what_is_lost_leaves_nothing_half_done(
    store: Counted, blobs: BlobStore, tree: Digest, tmp_path: Path, part: str
) -> None:
    for digest in read_tree(blobs, tree).blobs:
        store.delete(blobs.name(digest))
    with pytest.raises(NotFound):
        fetch_excerpt(blobs, tree, part, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_is_overwritten(blobs: BlobStore, tree: Digest, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        fetch_excerpt(blobs, tree, "ab", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_hostile_list_is_refused_before_its_parts_are_looked_at(blobs: BlobStore, tmp_path: Path) -> None:
    list_ = b'{"batchyard_tree":1,"entries":[{"path":"../x","type":"directory"}],"packs":[]}'
    tree = blobs.put_bytes(list_, "tree").digest
    with pytest.raises(InputError, match="is refused"):
        fetch_excerpt(blobs, tree, "../x", tmp_path / "out")


def test_a_file_has_no_parts(blobs: BlobStore, tmp_path: Path) -> None:
    file = blobs.put_bytes(b"x").digest
    with pytest.raises(InputError, match="is a file and has no parts; leave out 'a'"):
        Door(blobs).get(file, tmp_path / "out", part="a/")


def test_a_path_of_slashes_is_the_whole_tree(blobs: BlobStore, tree: Digest, tmp_path: Path) -> None:
    assert Door(blobs).get(tree, tmp_path / "out", part="/") == "tree"
    assert (tmp_path / "out" / "a" / "run").exists()


DIGEST = "sha256:" + 64 * "0"


@pytest.mark.parametrize(
    ("what", "name", "part"),
    [
        ("id:o", "id:o", ""),
        ("id:o/", "id:o", ""),
        ("id:o/a/b:c", "id:o", "a/b:c"),
        ("id:3:o/a", "id:3:o", "a"),
        ("run/7:o/a", "run/7:o", "a"),
        ("run/7:o", "run/7:o", ""),
        (DIGEST, DIGEST, ""),
        (f"{DIGEST}/a/b", DIGEST, "a/b"),
        ("nonsense/a", "nonsense/a", ""),
    ],
)
def test_a_name_is_told_from_the_path_behind_it(what: str, name: str, part: str) -> None:
    assert parted(what) == (name, part)
