"""Soft limits: room is made before it is wanted, and nothing goes for it that is in use."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.shelf import SOFT, Entry, Shelf
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.memory import MemoryStore

BLOCK = 4096


@given(
    sizes=st.lists(st.integers(1, 60), max_size=20),
    pinned=st.sets(st.integers(0, 19)),
    limit=st.integers(1, 400),
)
def test_the_surplus_is_the_least_that_brings_a_shelf_below_its_soft_limit(
    sizes: list[int], pinned: set[int], limit: int
) -> None:
    shelf = Shelf(limit, (Entry(key=str(n), bytes=size, used=n) for n, size in enumerate(sizes)))
    stays = {str(n) for n in pinned} | {str(len(sizes) - 1)}
    gone = shelf.surplus({str(n) for n in pinned}.__contains__)
    keys = [entry.key for entry in gone]
    assert not stays & set(keys)
    assert keys == sorted(keys, key=int)
    left = sum(sizes) - sum(entry.bytes for entry in gone)
    unpinned = [str(n) for n in range(len(sizes)) if str(n) not in stays]
    assert left <= limit * SOFT or keys == unpinned
    assert not gone or left + gone[-1].bytes > limit * SOFT
    assert shelf.is_crowded == (sum(sizes) > limit * SOFT)


@pytest.fixture
def blobs() -> BlobStore:
    return BlobStore(MemoryStore(), KeyRing.new())


@pytest.fixture
def copies(blobs: BlobStore, tmp_path: Path) -> LocalCopies:
    (tmp_path / "c").mkdir()
    return LocalCopies(blobs, Index(tmp_path / "c"), [Folder(tmp_path / "c", 20 * BLOCK)])


def test_copies_above_the_soft_limit_call_for_room_and_what_was_used_least_goes(
    blobs: BlobStore, copies: LocalCopies
) -> None:
    digests = [blobs.put_bytes(bytes([n])).digest for n in range(20)]
    for digest in digests[:18]:
        copies.stage(digest, "job")
    copies.unpin("job")
    assert not copies.held.crowded.is_set()
    copies.stage(digests[18], "next")
    assert copies.held.crowded.is_set()
    copies.held.tidy()
    assert copies.counts.held_bytes == 18 * BLOCK
    assert copies.counts.evictions == 1
    assert not copies.look("file", digests[0], "x")
    assert not copies.held.crowded.is_set()


def test_what_is_pinned_does_not_go_and_calls_again_when_it_is_pinned_no_more(
    blobs: BlobStore, copies: LocalCopies
) -> None:
    for n in range(20):
        copies.stage(blobs.put_bytes(bytes([n])).digest, "job")
    copies.held.tidy()
    assert copies.counts.held_bytes == 20 * BLOCK
    assert not copies.held.crowded.is_set()
    copies.unpin("job")
    assert copies.held.crowded.is_set()
    copies.held.tidy()
    assert copies.counts.held_bytes == 18 * BLOCK


def test_one_copy_that_is_larger_than_the_soft_limit_may_stay(blobs: BlobStore, copies: LocalCopies) -> None:
    digest = blobs.put_bytes(bytes(19 * BLOCK)).digest
    copies.stage(digest, "job")
    copies.unpin("job")
    copies.held.tidy()
    assert copies.counts.evictions == 0
    assert copies.look("file", digest, "job")


def test_a_near_store_makes_room_ahead_too(tmp_path: Path) -> None:
    store = MemoryStore()
    near = Bounded(store, Index(tmp_path), 20 * BLOCK)
    near.count()
    names = [f"{n:064x}" for n in range(19)]
    for name in names:
        near.put_if_absent(name, io.BytesIO(b"x"), 1)
    assert near.crowded.is_set()
    near.tidy()
    assert near.held() == names[1:]
    assert list(store.names()) == names[1:]
    assert not near.crowded.is_set()
