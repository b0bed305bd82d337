"""Whether all of a blob is still there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from batchyard.broker.errors import StoreUnavailable
from batchyard.broker.seal import KeyRing
from batchyard.cache.digest import Blob, Kind, digest_of
from batchyard.cache.packs import SMALL_BYTES
from batchyard.cache.parts import parts_of
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree
from batchyard.cache.whole import all_there

RING = KeyRing.new()
LARGE = b"x" * (SMALL_BYTES + 1)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def kept(store: MemoryStore, tmp_path: Path) -> list[Blob]:
    """A file, and a tree of two small files and a large one."""
    blobs = BlobStore(store, RING)
    (tmp_path / "d").mkdir()
    for n in (1, 2):
        (tmp_path / "d" / str(n)).write_bytes(bytes([n]))
    (tmp_path / "d" / "large").write_bytes(LARGE)
    return [blobs.put_bytes(b"alone"), put_tree(blobs, tmp_path / "d")]


def test_what_was_put_is_there(store: MemoryStore, kept: list[Blob]) -> None:
    assert all_there(BlobStore(store, RING), kept)
    assert all_there(BlobStore(store, RING), [])


def test_a_tree_needs_its_packs_its_large_files_and_its_manifest(store: MemoryStore, kept: list[Blob]) -> None:
    blobs = BlobStore(store, RING)
    kinds: tuple[Kind | None, ...] = ("tree", None)
    for kind in kinds:
        found = parts_of(blobs, kept[1].digest, kind)
        assert sorted(found) == sorted([kept[1].digest, digest_of(b"\1\2"), digest_of(LARGE)])
    assert parts_of(blobs, kept[0].digest) == [kept[0].digest]


def test_without_any_one_part_it_is_not_all_there(store: MemoryStore, kept: list[Blob]) -> None:
    needed = list(store.names())
    for name in needed:
        held = dict(store._objects)
        store.delete(name)
        assert not all_there(BlobStore(store, RING), kept), name
        store._objects = held
    assert all_there(BlobStore(store, RING), kept)


def test_who_needs_it_says_so_before_it_is_looked_at(store: MemoryStore, kept: list[Blob]) -> None:
    blobs, told = BlobStore(store, RING), list[str]()

    def use(names: Sequence[str]) -> Collection[str]:
        told.extend(names)
        return names[:1]  # is being deleted

    assert not all_there(blobs, kept, use=use)
    assert sorted(told) == sorted(store.names())


def test_a_damaged_manifest_is_none(store: MemoryStore, kept: list[Blob]) -> None:
    name = RING.name(kept[1].digest)
    store._objects[name] = store._objects[name][:-1]
    assert not all_there(BlobStore(store, RING), kept)


def test_a_store_that_is_away_says_neither(
    store: MemoryStore, kept: list[Blob], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(name: str) -> int:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(store, "stat", away)
    with pytest.raises(StoreUnavailable):
        all_there(BlobStore(store, RING), kept)
