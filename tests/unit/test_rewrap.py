"""New wraps for old blobs: over every kind of store in `tests/contract/test_rewrap.py`, here what is particular."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress

import pytest

from batchyard.broker.errors import IntegrityError, StoreUnavailable
from batchyard.broker.seal import HEADER_BYTES, KeyRing, Readable, SealUnknown
from batchyard.cache import wraps
from batchyard.cache.kept import Kept
from batchyard.cache.rewrap import Rewrap, first_bytes
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.protocol import Unreadable
from batchyard.cache.stores.tiered import Tiered
from batchyard.cache.wraps import Records, Shards, bits_for, shard_of
from yardtest.keys import retired, rotated


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def put_some(store: MemoryStore, ring: KeyRing, count: int = 20) -> dict[str, bytes]:
    blobs = BlobStore(store, ring)
    datas = [os.urandom(20) for _ in range(count)]
    return {blobs.put_bytes(data).digest: data for data in datas}


def all_open(store: MemoryStore, ring: KeyRing, there: dict[str, bytes]) -> bool:
    blobs = BlobStore(store, ring)
    return all(blobs.read_bytes(digest, 1000) == data for digest, data in there.items())


def test_after_a_rotation_all_blobs_open_with_the_new_key_alone_and_no_object_was_changed(store: MemoryStore) -> None:
    old = KeyRing.new()
    there = put_some(store, old)
    before = {name: first_bytes(store, name, 1000) for name in store.names()}
    both = rotated(old)
    done = Rewrap(store, both).run()
    assert (done.objects, done.wrapped, done.damaged, done.unknown) == (20, 20, [], [])
    assert all(first_bytes(store, name, 1000) == data for name, data in before.items())
    new = retired(both, old.current)
    assert new.ids == (both.current,)
    assert all_open(store, new, there)
    assert all_open(store, old, there)


def test_without_wraps_a_blob_under_a_retired_key_is_left_alone(store: MemoryStore) -> None:
    old = KeyRing.new()
    there = put_some(store, old, 1)
    blobs = BlobStore(store, retired(rotated(old), old.current))
    with pytest.raises(SealUnknown, match=old.current):
        blobs.read_bytes(next(iter(there)), 100)
    assert blobs.counters.corrupt == 0
    assert all_open(store, old, there)


def test_a_second_rotation_stands_on_the_first_and_its_wraps_can_go(store: MemoryStore) -> None:
    one = KeyRing.new()
    there = put_some(store, one)
    two = rotated(one)
    Rewrap(store, two).run()
    two = retired(two, one.current)
    there |= put_some(store, two)
    three = rotated(two)
    rewrap = Rewrap(store, three)
    assert rewrap.run().wrapped == 40
    objects = set(store.names())
    rewrap.forget(two.current)
    three = retired(three, two.current)
    assert len(objects - set(store.names())) == 4  # the plan and one shard, each twice
    assert all_open(store, three, there)
    assert set(store.names()) - {three.name(digest) for digest in there} == Rewrap(store, three).own_names()


def test_what_was_put_under_an_old_key_since_is_found_by_another_pass(store: MemoryStore) -> None:
    old = KeyRing.new()
    there = put_some(store, old)
    both = rotated(old)
    rewrap = Rewrap(store, both)
    rewrap.run()
    late = put_some(store, old, 3)
    assert rewrap.run().skipped_shards == 1
    assert rewrap.census() == {both.current: 20, old.current: 3}
    assert rewrap.run(again=True).wrapped == 3
    assert rewrap.census() == {both.current: 23}
    assert rewrap.run(again=True).wrapped == 0
    assert all_open(store, retired(both, old.current), there | late)


def test_a_blob_that_was_deleted_and_put_again_under_the_old_key_gets_a_wrap_of_its_own(store: MemoryStore) -> None:
    old = KeyRing.new()
    there = put_some(store, old, 3)
    both = rotated(old)
    new = retired(both, old.current)
    rewrap, reader = Rewrap(store, both), BlobStore(store, new)
    rewrap.run()
    digest, data = next(iter(there.items()))
    assert reader.read_bytes(digest, 100) == data
    store.delete(old.name(digest))
    BlobStore(store, old).put_bytes(data)
    with pytest.raises(SealUnknown):
        BlobStore(store, new).read_bytes(digest, 100)
    assert rewrap.run(again=True).wrapped == 1
    assert all_open(store, new, there)


def test_a_reader_looks_again_for_a_wrap_after_a_while_and_not_each_time(store: MemoryStore) -> None:
    class Counting(MemoryStore):
        gets = 0

        def get(self, name: str) -> AbstractContextManager[Readable]:
            self.gets += 1
            return super().get(name)

    counting, old, now = Counting(), KeyRing.new(), 0.0
    digest = BlobStore(counting, old).put_bytes(b"data").digest
    both = rotated(old)
    new = retired(both, old.current)
    finder = wraps.Wraps(counting, new, clock=lambda: now)
    header, name = first_bytes(counting, new.name(digest), HEADER_BYTES), new.name(digest)
    assert finder.find(name, header) is None
    Rewrap(counting, both).run()
    gets = counting.gets
    assert finder.find(name, header) is None
    assert counting.gets == gets
    now = 11.0
    assert finder.find(name, header) == both.rewrapped(header, name)
    gets = counting.gets
    assert finder.find(name, header) == both.rewrapped(header, name)
    assert counting.gets == gets


def test_a_reader_looks_again_at_once_when_its_ring_loses_a_key(store: MemoryStore) -> None:
    one = KeyRing.new()
    there = put_some(store, one, 3)
    two = rotated(one)
    Rewrap(store, two).run()
    three = retired(two, one.current).rotated()
    reader = BlobStore(store, three)
    Shards(Kept(store, three), three.current).begin(3)
    digest, data = next(iter(there.items()))
    assert reader.read_bytes(digest, 100) == data  # by the second key's wraps: the third one has none yet
    rewrap = Rewrap(store, KeyRing(three._keys))
    rewrap.run()
    rewrap.forget(two.current)
    three.renew(three._keys.without(two.current))
    assert reader.read_bytes(digest, 100) == data


def test_a_damaged_shard_is_made_good_by_its_twin_and_two_damaged_ones_delete_no_blob(store: MemoryStore) -> None:
    old = KeyRing.new()
    there = put_some(store, old, 2)
    both = rotated(old)
    Rewrap(store, both).run()
    new = retired(both, old.current)
    twins = list(Kept(store, new).names(f"wraps of {new.current}: 0.0"))
    for twin in reversed(twins):
        data = first_bytes(store, twin, 1000)
        store.delete(twin)
        store.put_if_absent(twin, io.BytesIO(data[:-1]), len(data) - 1)
        if twin == twins[1]:
            assert all_open(store, new, there)
    blobs = BlobStore(store, new)
    with pytest.raises(SealUnknown, match="does not open"):
        blobs.read_bytes(next(iter(there)), 100)
    assert blobs.counters.corrupt == 0
    assert all_open(store, old, there)


def test_damaged_blobs_and_blobs_under_unknown_keys_are_told_and_stop_nothing(store: MemoryStore) -> None:
    old, stranger = KeyRing.new(), rotated(KeyRing.new())
    there = put_some(store, old, 5)
    spoiled, foreign = "a" * 64, stranger.name("sha256:" + "b" * 64)
    store.put_if_absent(spoiled, io.BytesIO(b"no blob"), 7)
    put_some(store, stranger, 1)
    both = rotated(old)
    done = Rewrap(store, both).run()
    assert (done.wrapped, done.damaged, len(done.unknown)) == (5, [spoiled], 1)
    assert foreign not in done.damaged
    assert all_open(store, retired(both, old.current), there)


def test_a_header_that_was_read_badly_once_is_read_again() -> None:
    class BadAtFirst(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.bad: list[str] = []

        def get(self, name: str) -> AbstractContextManager[Readable]:
            if name in self.bad:
                self.bad.remove(name)
                if len(self.bad) % 2:
                    raise Unreadable("rot")
                return io.BytesIO(b"an error page of a proxy")
            return super().get(name)

    store, old = BadAtFirst(), KeyRing.new()
    there = put_some(store, old, 4)
    both = rotated(old)
    store.bad = list(store.names())
    done = Rewrap(store, both).run()
    assert (done.wrapped, done.damaged, store.bad) == (4, [], [])
    assert all_open(store, retired(both, old.current), there)


def test_a_store_that_goes_away_ends_a_pass_and_the_next_one_goes_on(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wraps, "SHARD_RECORDS", 4)

    class Going(MemoryStore):
        puts_left = 1 << 30

        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            self.puts_left -= 1
            if self.puts_left < 0:
                raise StoreUnavailable("gone")
            return super().put_if_absent(name, source, size)

    going, old = Going(), KeyRing.new()
    there = put_some(going, old, 30)
    both = rotated(old)
    done, runs = None, 0
    while done is None:
        runs, going.puts_left = runs + 1, 5  # two for the plan, two for a shard, and half of the next one
        with suppress(StoreUnavailable):
            done = Rewrap(going, both).run()
    assert runs >= 8
    assert done.skipped_shards == 7
    assert all_open(going, retired(both, old.current), there)


def put_in_both(near: MemoryStore, far: MemoryStore, ring: KeyRing) -> str:
    tiered = Tiered(near, far)
    digest = BlobStore(tiered, ring).put_bytes(b"data").digest
    assert tiered.settle(10)
    return digest


def test_a_stale_near_copy_gives_way_to_what_the_far_store_has_now() -> None:
    near, far, old = MemoryStore(), MemoryStore(), KeyRing.new()
    digest = put_in_both(near, far, old)
    name = old.name(digest)
    both = rotated(old)
    far.delete(name)  # it was found bad elsewhere, say, and put again
    BlobStore(far, both).put_bytes(b"data")
    Rewrap(far, both).run()
    new = BlobStore(Tiered(near, far), retired(both, old.current))
    assert near.stat(name) is not None
    assert new.read_bytes(digest, 100) == b"data"
    assert new.counters.corrupt == 0


def test_a_near_copy_opens_by_the_wraps_of_the_far_store() -> None:
    near, far, old = MemoryStore(), MemoryStore(), KeyRing.new()
    digest = put_in_both(near, far, old)
    both = rotated(old)
    Rewrap(Tiered(near, far), both).run()
    new = BlobStore(Tiered(near, far), retired(both, old.current))
    far.delete(old.name(digest))
    assert new.read_bytes(digest, 100) == b"data"


@pytest.mark.parametrize(
    ("count", "bits"), [(0, 0), (1, 0), (2048, 0), (2049, 1), (4096, 1), (10_000, 3), (1 << 40, 20)]
)
def test_shards_have_some_thousand_records(count: int, bits: int) -> None:
    assert bits_for(count) == bits


def test_names_are_parted_by_their_first_bits() -> None:
    assert [shard_of(one * 64, 0) for one in "0f"] == [0, 0]
    assert [shard_of(one * 64, 1) for one in "07 8f".replace(" ", "")] == [0, 0, 1, 1]
    assert shard_of("f" * 64, 20) == (1 << 20) - 1


def test_records_are_found_by_name_and_nothing_else_is() -> None:
    given: dict[str, bytes] = {os.urandom(32).hex(): os.urandom(HEADER_BYTES) for _ in range(100)}
    records = Records.of(given.items())
    assert len(records) == 100
    assert all(records.get(name) == header for name, header in given.items())
    assert records.get(os.urandom(32).hex()) is None
    assert Records.of([]).get("0" * 64) is None
    with pytest.raises(IntegrityError):
        Records(records.data[:-1])


def test_of_two_rotations_at_once_none_loses_a_wrap(store: MemoryStore) -> None:
    """The other one comes between the look and the put, and knows less."""
    old = KeyRing.new()
    there = put_some(store, old, 4)
    both = rotated(old)

    class Other(MemoryStore):
        met = False

        def names(self) -> Iterator[str]:
            return store.names()

        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            if not self.met and name in set(Kept(store, both).names(f"wraps of {both.current}: 0.0")):
                self.met = True
                less = Records.of([])
                Shards(Kept(store, both), both.current).put(0, 0, less)
            return store.put_if_absent(name, source, size)

        def get(self, name: str) -> AbstractContextManager[Readable]:
            return store.get(name)

        def stat(self, name: str) -> int | None:
            return store.stat(name)

    done = Rewrap(Other(), both).run()
    assert done.wrapped == 4
    assert all_open(store, retired(both, old.current), there)
