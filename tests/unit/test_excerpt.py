"""One file or directory out of a tree: the right bytes, none of the others, and clear words for what cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from batchyard.broker.errors import InputError, NotFound
from batchyard.broker.seal import KeyRing
from batchyard.cache.digest import Digest
from batchyard.cache.excerpt import fetch_excerpt
from batchyard.cache.packs import SMALL_BYTES
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.counted import Counted
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree

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
    return put_tree(blobs, root).digest


@pytest.mark.parametrize(
    ("part", "content", "mode"),
    [
        ("a/run", b"#!/bin/sh\n", 0o755),
        ("ab", b"not in a", 0o644),
        ("/a/deep/large", LARGE, 0o644),
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
    assert fetch_excerpt(blobs, tree, "a/", tmp_path / "out") == "tree"
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
        ("a/nosuch", NotFound, r'has no "a/nosuch"; `batchyard ls sha256:.*` lists what it has'),
        ("latest/run", NotFound, 'has no "latest/run"'),
        ("../in/ab", NotFound, 'has no "../in/ab"'),
        ("latest", InputError, r'"latest" of tree .* is a symlink to "a"; name that, or get the whole tree'),
        ("b", InputError, r"'out' is a symlink to '../ab', which leaves the tree; get the whole one"),
    ],
)
def test_what_cannot_be_had_alone_is_said_and_leaves_nothing(
    blobs: BlobStore, tree: Digest, tmp_path: Path, part: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fetch_excerpt(blobs, tree, part, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_file_has_no_parts(blobs: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a tree"):
        fetch_excerpt(blobs, blobs.put_bytes(b"x").digest, "a", tmp_path / "out")
