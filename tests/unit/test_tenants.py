"""What belongs to one tenant is to another as if it were not there: in the store, on a node, among what was fetched."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker.errors import BlobMissing, InvalidConfig
from batchyard.broker.seal import KeyRing
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import digest_of
from batchyard.cache.index import Index
from batchyard.cache.remote.known import name_of
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.tree import put_tree

TENANTS = ("", "alice", "bob")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def blobs(store: MemoryStore) -> BlobStore:
    return BlobStore(store, KeyRing.new())


@pytest.fixture
def copies(blobs: BlobStore, tmp_path: Path) -> Iterator[LocalCopies]:
    folder = tmp_path / "copies"
    held = Folder(folder, 1 << 20)
    made = LocalCopies(blobs, Index(folder), [held])
    yield made
    made.close()


def test_a_tenants_names_are_its_own_and_the_yards_are_those_without_one() -> None:
    ring = KeyRing.new()
    digest = digest_of(b"data")
    assert ring.of("") is ring
    assert len({ring.of(tenant).name(digest) for tenant in TENANTS}) == 3
    assert ring.of("alice").name(digest) == ring.rotated().of("alice").name(digest)


def test_what_one_tenant_put_the_others_do_not_find(blobs: BlobStore) -> None:
    digest = blobs.of("alice").put_bytes(b"alice's").digest
    for tenant in ("", "bob"):
        other = blobs.of(tenant)
        assert not other.has(digest)
        with pytest.raises(BlobMissing) as missing:
            other.read_bytes(digest, 100)
        never = digest_of(b"nobody's")
        with pytest.raises(BlobMissing) as unknown:
            other.read_bytes(never, 100)
        assert str(missing.value).replace(digest, never) == str(unknown.value)
    assert blobs.of("alice").read_bytes(digest, 100) == b"alice's"


def test_whether_a_put_moves_bytes_tells_nothing_of_another_tenants_blobs(blobs: BlobStore, store: MemoryStore) -> None:
    blobs.of("alice").put_bytes(b"the same")
    before = blobs.counters.puts
    blobs.of("bob").put_bytes(b"the same")
    assert (blobs.counters.puts, blobs.counters.known_puts) == (before + 1, 0)
    assert len(list(store.names())) == 2


def test_an_object_of_one_tenant_under_a_name_of_another_is_not_served(blobs: BlobStore, store: MemoryStore) -> None:
    """Even a store that knows both names and swaps what lies under them gives no tenant another one's bytes."""
    one, two = blobs.of("alice").put_bytes(b"alice's"), blobs.of("bob").put_bytes(b"bob's")
    names = blobs.of("alice").name(one.digest), blobs.of("bob").name(two.digest)
    sealed = []
    for name in names:
        with store.get(name) as reader:
            buffer = bytearray(4096)
            sealed.append(bytes(buffer[: reader.readinto(memoryview(buffer))]))
        store.delete(name)
    for name, data in zip(names, reversed(sealed), strict=True):
        store.put_if_absent(name, io.BytesIO(data), len(data))
    for tenant, blob in (("alice", one), ("bob", two)):
        with pytest.raises(Exception, match="blob"):
            blobs.of(tenant).read_bytes(blob.digest, 100)


def test_a_copy_of_one_tenant_is_not_here_for_another(blobs: BlobStore, copies: LocalCopies) -> None:
    blob = blobs.of("alice").put_bytes(b"alice's")
    assert not copies.of("alice").stage(blob, "job").here
    assert copies.of("alice").stage(blob, "job").here
    for tenant in ("", "bob"):
        assert copies.of(tenant).find("file", blob.digest, "other") is None
        with pytest.raises(BlobMissing):
            copies.of(tenant).stage(blob, "other")
    assert copies.counts.held_bytes == 4096, "one budget for all"


def test_tenants_with_the_same_bytes_have_copies_of_their_own(blobs: BlobStore, copies: LocalCopies) -> None:
    paths = set()
    for tenant in TENANTS:
        blob = blobs.of(tenant).put_bytes(b"the same")
        staged = copies.of(tenant).stage(blob, f"job of {tenant}")
        assert not staged.here, "another tenant's copy would tell that it is there"
        paths.add(staged.path)
    assert len(paths) == 3
    assert len(copies.last_used(9)) == 3


def test_a_tree_is_its_tenants_with_all_that_is_in_it(blobs: BlobStore, copies: LocalCopies, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    source.mkdir()
    (source / "file").write_bytes(b"in a tree")
    tree = put_tree(blobs.of("alice"), source)
    assert (copies.of("alice").stage(tree, "job").path / "file").read_bytes() == b"in a tree"
    with pytest.raises(BlobMissing):
        copies.of("bob").stage(tree, "other")
    assert not blobs.of("bob").has(digest_of(b"in a tree"))


def test_what_was_fetched_from_elsewhere_is_known_to_its_tenant_only() -> None:
    assert len({name_of("https://example.org/x", None, None, tenant) for tenant in TENANTS}) == 3


@pytest.mark.parametrize("name", ["../bob", "a b", "-a", "a" * 65, "a/b"])
def test_a_tenants_name_is_a_plain_word(name: str) -> None:
    from batchyard.broker.config import parse

    told = {
        "queues": {"cpu": {"environments": ["here"], "tenant": name}},
        "environments": {"here": {"vcpus": 1, "memory_mib": 100, "gpus": 0, "disk_gib": 1}},
    }
    with pytest.raises(InvalidConfig, match="tenant"):
        parse(told, "yard.yaml")
