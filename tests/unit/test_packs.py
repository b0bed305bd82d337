"""Small files of a tree lie in packs: what that saves, and what it must not change."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from batchyard.broker.errors import InputError, IntegrityError
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.gathered import stage_gathered
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob, digest_of
from batchyard.cache.door import Door
from batchyard.cache.index import Index
from batchyard.cache.manifest import File, encode
from batchyard.cache.packs import MOST_PACK_BYTES, SMALL_BYTES, Pack, Packer, Place
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import build_tree, fetch_tree, put_tree, read_small, read_tree

KIB = 1 << 10


class Counting(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.gets: list[str] = []

    def get(self, name: str) -> AbstractContextManager[Readable]:
        self.gets.append(name)
        return super().get(name)


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
def blobs(store: Counting) -> BlobStore:
    return BlobStore(store, KeyRing.new())


def packed(contents: Sequence[bytes]) -> tuple[tuple[Pack, ...], list[Place]]:
    packer = Packer(digest_of)
    places = [packer.add(digest_of(data), data) for data in contents]
    return packer.end(), places


def many(root: Path, count: int, size: int, *, seed: int = 1) -> int:
    """Files of random bytes in a few folders; the sum of their sizes."""
    dice = random.Random(seed)
    for number in range(count):
        path = root / f"d{number % 3}" / f"{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dice.randbytes(size))
    return count * size


def content_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_packs_are_filled_without_a_gap_up_to_their_limit() -> None:
    dice = random.Random(7)
    contents = [dice.randbytes(dice.randint(1, SMALL_BYTES)) for _ in range(200)]
    packs, places = packed(contents)
    whole = [bytearray() for _ in packs]
    for data, place in zip(contents, places, strict=True):
        assert len(whole[place.pack]) == place.at
        whole[place.pack] += data
    assert [Pack(digest=digest_of(bytes(data)), size=len(data)) for data in whole] == list(packs)
    assert len(packs) < len(contents) / 20
    assert max(pack.size for pack in packs) <= MOST_PACK_BYTES


def test_a_file_more_or_less_changes_few_packs() -> None:
    dice = random.Random(8)
    contents = [dice.randbytes(100 * KIB) for _ in range(1000)]
    before = set(packed(contents)[0])
    for changed in ([*contents[:300], b"new", *contents[300:]], contents[:300] + contents[301:]):
        assert len(before & set(packed(changed)[0])) >= len(before) - 2 > 5


def test_equal_files_lie_in_a_pack_once(blobs: BlobStore, tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / "in" / str(number)).mkdir(parents=True)
        (tmp_path / "in" / str(number) / "same").write_bytes(b"same" * 1000)
    tree = read_tree(blobs, put_tree(blobs, tmp_path / "in").digest)
    assert tree.packs == (Pack(digest=digest_of(b"same" * 1000), size=4000),)
    assert tree.size == 200_000
    fetch_tree(blobs, put_tree(blobs, tmp_path / "in").digest, tmp_path / "out")
    assert content_of(tmp_path / "out") == content_of(tmp_path / "in")


def test_empty_files_are_kept_nowhere(blobs: BlobStore, store: Counting, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "empty").touch(mode=0o700)
    blob = put_tree(blobs, tmp_path / "in")
    assert len(list(store.names())) == 1
    assert read_tree(blobs, blob.digest).blobs == {}
    fetch_tree(blobs, blob.digest, tmp_path / "out")
    assert (tmp_path / "out" / "empty").stat().st_mode & 0o777 == 0o555


def test_only_larger_files_are_blobs_of_their_own(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, size in {"small": SMALL_BYTES, "large": SMALL_BYTES + 1}.items():
        (tmp_path / "in" / name).write_bytes(bytes(size))
    blob = put_tree(blobs, tmp_path / "in")
    sizes = {digest_of(bytes(size)): size for size in (SMALL_BYTES, SMALL_BYTES + 1)}
    assert read_tree(blobs, blob.digest).blobs == sizes
    assert all(blobs.has(digest) for digest in sizes)


def test_two_thousand_files_are_few_objects_that_are_read_once_and_put_once(
    blobs: BlobStore, store: Counting, tmp_path: Path
) -> None:
    size = many(tmp_path / "in", 2000, 8 * KIB)
    heard: list[int] = []
    blob = put_tree(blobs, tmp_path / "in", heard.append)
    assert (blobs.counters.puts, sum(heard)) == (3, size)  # two packs and the manifest
    heard.clear()
    assert put_tree(blobs, tmp_path / "in", heard.append) == blob
    assert (blobs.counters.puts, blobs.counters.known_puts, sum(heard)) == (3, 3, size)
    heard.clear()
    assert fetch_tree(blobs, blob.digest, tmp_path / "out", heard.append) == size
    assert sorted(store.gets) == sorted(store.names())
    assert sum(heard) == size
    assert content_of(tmp_path / "out") == content_of(tmp_path / "in")


def test_files_have_their_modes_whatever_the_umask(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "run").write_bytes(b"#!")
    (tmp_path / "in" / "run").chmod(0o700)
    (tmp_path / "in" / "data").write_bytes(b"data")
    old = os.umask(0o077)
    try:
        fetch_tree(blobs, put_tree(blobs, tmp_path / "in").digest, tmp_path / "out")
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes == {"run": 0o555, "data": 0o444}


def test_packs_that_are_fetched_side_by_side_are_one_directory(blobs: BlobStore, tmp_path: Path) -> None:
    many(tmp_path / "in", 150, 200 * KIB)
    (tmp_path / "in" / "large").write_bytes(os.urandom(SMALL_BYTES * 3))
    tree = read_tree(blobs, put_tree(blobs, tmp_path / "in").digest)
    assert len(tree.packs) > 2
    build_tree(blobs, tree, tmp_path / "out", at_once=4)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "in")


def test_a_build_that_nobody_wants_any_more_ends_and_leaves_nothing(
    blobs: BlobStore, store: Counting, tmp_path: Path
) -> None:
    many(tmp_path / "in", 100, 200 * KIB)
    tree = read_tree(blobs, put_tree(blobs, tmp_path / "in").digest)
    store.gets.clear()
    with pytest.raises(InputError, match="told to stop"):
        build_tree(blobs, tree, tmp_path / "out", stopped=lambda: len(store.gets) == 1)
    assert len(store.gets) == 1 < len(tree.packs)
    assert os.listdir(tmp_path) == ["in"]


@pytest.mark.parametrize(("declared", "words"), [(3, "has 4 bytes; at most 3"), (5, "has 4 bytes, not 5")])
def test_a_pack_of_another_size_is_refused(blobs: BlobStore, tmp_path: Path, declared: int, words: str) -> None:
    pack = Pack(digest=blobs.put_bytes(b"data").digest, size=declared)
    entry = File(path="a", digest=digest_of(b"x"), size=declared, place=Place(pack=0, at=0))
    blob = blobs.put_bytes(encode([entry], [pack]), "tree")
    with pytest.raises(InputError, match=words):
        fetch_tree(blobs, blob.digest, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_file_that_grows_while_it_is_read_is_refused() -> None:
    fd = os.open("/proc/self/status", os.O_RDONLY)  # which says that it has no bytes
    try:
        with pytest.raises(IntegrityError, match="changed while"):
            read_small(fd)
    finally:
        os.close(fd)


def test_what_is_in_a_tree_is_told_file_by_file(blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "in" / "a").mkdir(parents=True)
    (tmp_path / "in" / "a" / "x").write_bytes(b"x")
    (tmp_path / "in" / "a.txt").write_bytes(b"text")
    shown = Door(blobs).look(put_tree(blobs, tmp_path / "in").digest)
    assert (shown["kind"], shown["size"]) == ("tree", 5)
    assert [(entry["path"], entry.get("size"), entry.get("digest")) for entry in shown["entries"]] == [
        ("a", None, None),
        ("a/x", 1, digest_of(b"x")),
        ("a.txt", 4, digest_of(b"text")),
    ]


def test_a_gathered_directory_fetches_each_pack_of_its_members_once(
    blobs: BlobStore, store: Counting, tmp_path: Path
) -> None:
    members: dict[str, Blob] = {"file": blobs.put_bytes(b"alone"), "none": blobs.put_bytes(b"")}
    for number in range(12):
        many(tmp_path / str(number), 40, KIB, seed=number % 4)  # three times the same
        members[str(number)] = put_tree(blobs, tmp_path / str(number))
    (tmp_path / "copies").mkdir()
    copies = LocalCopies(blobs, Index(tmp_path / "copies"), [Folder(tmp_path / "copies", 1 << 30)])
    store.gets.clear()
    made = stage_gathered(copies, members, "o", "job.1", stopped=lambda: False)
    assert len(store.gets) == 1 + 12 + 4  # the file that is not empty, manifests, packs
    assert all(content_of(made / str(number)) == content_of(tmp_path / str(number)) for number in range(12))
    assert ((made / "file" / "o").read_bytes(), (made / "none" / "o").read_bytes()) == (b"alone", b"")
    store.gets.clear()
    assert stage_gathered(copies, members, "o", "job.2", stopped=lambda: False) == made
    assert stage_gathered(copies, members, "other", "job.2", stopped=lambda: False) != made
    assert len(store.gets) == 1 + 12 + 4
    copies.close()
