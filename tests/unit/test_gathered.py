"""Outputs of many jobs put together as one directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker.errors import InputError
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.gathered import stage_gathered
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob
from batchyard.cache.index import Index
from batchyard.cache.manifest import Directory, encode
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[LocalCopies]:
    folder = tmp_path / "copies"
    folder.mkdir()
    made = LocalCopies(BlobStore(MemoryStore(), KeyRing.new()), Index(folder), [Folder(folder, 1 << 30)])
    yield made
    made.close()


def gathered(copies: LocalCopies, members: dict[str, Blob], owner: str = "job.1") -> Path:
    return stage_gathered(copies, members, "o", owner, stopped=lambda: False)


def test_files_and_trees_lie_in_a_folder_each(copies: LocalCopies, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "f").write_text("deep")
    (tmp_path / "tree" / "link").symlink_to("sub/f")
    tree = put_tree(copies.blobs, tmp_path / "tree")
    files = {str(n): copies.blobs.put_bytes(str(n).encode()) for n in range(100)}
    path = gathered(copies, {**files, "100": tree})
    assert sorted(int(p.name) for p in path.iterdir()) == list(range(101))
    assert [(path / str(n) / "o").read_text() for n in range(100)] == [str(n) for n in range(100)]
    assert (path / "100" / "link").read_text() == "deep"
    assert not (path / "7" / "o").stat().st_mode & 0o222


def test_the_same_ones_are_fetched_once_and_pinned_for_each_who_wants_them(copies: LocalCopies) -> None:
    members = {str(n): copies.blobs.put_bytes(b"same") for n in range(3)}
    first = gathered(copies, members)
    assert gathered(copies, members, "job.2") == first
    assert copies.moved("job.2").here == 1
    copies.unpin("job.1")
    assert first.exists()
    assert gathered(copies, {}) != first  # nothing at all is an empty directory


def test_what_is_not_there_is_said_and_leaves_nothing(copies: LocalCopies, tmp_path: Path) -> None:
    gone = Blob(digest="sha256:" + "0" * 64, size=3)
    with pytest.raises(Exception, match="sha256:000"):
        gathered(copies, {"0": copies.blobs.put_bytes(b"x"), "1": gone})
    with pytest.raises(InputError, match="cannot be a directory"):
        gathered(copies, {"../0": copies.blobs.put_bytes(b"x")})
    with pytest.raises(InputError, match="told to stop"):
        stage_gathered(copies, {"0": gone}, "o", "job.1", stopped=lambda: True)
    assert list((tmp_path / "copies" / "tree").iterdir()) == []


def test_no_more_is_read_once_it_is_too_much(copies: LocalCopies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchyard.cache.copies.gathered.MOST_ENTRIES", 100)
    tree = copies.blobs.put_bytes(encode([Directory(path=f"{n:06}") for n in range(40)]), "tree")
    with pytest.raises(InputError, match="more than 100 entries"):
        gathered(copies, {str(n): tree for n in range(10)})
    assert copies.blobs.counters.fetches == 3
