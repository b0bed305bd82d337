"""Two stores as one, and a store that forgets: what is in which, and what a bad or absent near store costs."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from batchyard.broker.errors import DiskFull, IntegrityError, NotFound, StoreUnavailable
from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores import fill
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.counted import Counted
from batchyard.cache.stores.late import Late
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.stores.protocol import CopyLost, Store, Unreadable
from batchyard.cache.stores.tiered import REST_S, Tiered

ONE, TWO, THREE, FOUR = (f"{number:064x}" for number in range(1, 5))


class Moody(MemoryStore):
    """As it is told: `away`, `full`, `rotten` (says itself that it cannot read), or `cut` after so many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.away = self.full = self.rotten = False
        self.cut: int | None = None
        self.cut_short = StoreUnavailable("ended early")
        self.tries = 0

    def _look(self) -> None:
        self.tries += 1
        if self.away:
            raise StoreUnavailable("the near store does not answer")

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        self._look()
        if self.full:
            raise DiskFull("full")
        return super().put_if_absent(name, source, size)

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        self._look()
        with super().get(name) as reader:
            if self.rotten:
                raise Unreadable("cannot be read by the store itself")
            yield reader if self.cut is None else Cut(reader, self.cut, self.cut_short)

    def delete(self, name: str) -> None:
        self._look()
        super().delete(name)


class Cut:
    def __init__(self, reader: Readable, left: int, error: StoreUnavailable) -> None:
        self._reader, self._left, self._error = reader, left, error

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._left:
            raise self._error
        count = self._reader.readinto(buffer[: self._left]) or 0
        self._left -= count
        return count


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def near() -> Moody:
    return Moody()


@pytest.fixture
def far() -> Moody:
    return Moody()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tiered(near: Moody, far: Moody, clock: Clock) -> Tiered:
    return Tiered(near, far, clock=clock)


def put(store: Store, name: str, data: bytes) -> bool:
    return store.put_if_absent(name, io.BytesIO(data), len(data))


def read(store: Store, name: str) -> bytes:
    with store.get(name) as reader:
        return rest_of(reader)


def rest_of(reader: Readable) -> bytes:
    pieces, buffer = bytearray(), memoryview(bytearray(1 << 16))
    while count := reader.readinto(buffer):
        pieces += buffer[:count]
    return bytes(pieces)


def damage(store: MemoryStore, name: str) -> None:
    data = bytearray(read(store, name))
    data[-1] ^= 1
    MemoryStore.delete(store, name)
    MemoryStore.put_if_absent(store, name, io.BytesIO(data), len(data))


# -- two as one


@pytest.mark.parametrize("size", [0, 1, 5 << 20, 20 << 20])
def test_what_is_put_is_in_both(tiered: Tiered, near: Moody, far: Moody, size: int) -> None:
    data = os.urandom(size)
    assert put(tiered, ONE, data)
    assert read(far, ONE) == data
    assert tiered.settle(30)
    assert read(near, ONE) == data


@pytest.mark.parametrize("size", [0, 1, 5 << 20, 20 << 20])
def test_what_is_read_from_the_far_store_is_near_from_then_on(
    tiered: Tiered, near: Moody, far: Moody, size: int
) -> None:
    data = os.urandom(size)
    put(far, ONE, data)
    assert read(tiered, ONE) == data
    assert tiered.settle(30)
    far.away = True
    assert read(tiered, ONE) == data


def test_a_read_that_stops_early_fills_nothing(tiered: Tiered, near: Moody, far: Moody) -> None:
    put(far, ONE, os.urandom(20 << 20))
    with tiered.get(ONE) as reader:
        for _ in range(6):
            reader.readinto(memoryview(bytearray(1 << 20)))
    assert tiered.settle(30)
    assert list(near.names()) == []


def test_a_put_that_fails_in_the_far_store_is_seen_nowhere(tiered: Tiered, near: Moody, far: Moody) -> None:
    class Failing:
        given = 0

        def readinto(self, buffer: memoryview, /) -> int:
            self.given += 1
            if self.given > 6:
                raise IntegrityError("changed")
            return len(buffer)

    with pytest.raises(IntegrityError, match="changed"):
        tiered.put_if_absent(ONE, Failing(), 100 << 20)
    assert tiered.settle(30)
    assert list(near.names()) == list(far.names()) == []


@pytest.mark.parametrize("mood", ["away", "full"])
def test_a_near_store_that_is_gone_or_full_fails_nothing(tiered: Tiered, near: Moody, far: Moody, mood: str) -> None:
    setattr(near, mood, True)
    for data in (b"small", os.urandom(20 << 20)):
        far.delete(ONE)
        assert put(tiered, ONE, data)
        assert read(tiered, ONE) == data
        assert tiered.stat(ONE) == len(data)
    assert tiered.settle(30)
    assert list(near.names()) == []


def test_a_near_store_that_does_not_answer_is_left_alone_for_a_while(
    tiered: Tiered, near: Moody, far: Moody, clock: Clock
) -> None:
    put(far, ONE, b"x")
    near.away = True
    for _ in range(5):
        assert read(tiered, ONE) == b"x"
    assert near.tries == 1
    near.away = False
    clock.now_s += REST_S
    assert read(tiered, ONE) == b"x"
    assert tiered.settle(30)
    assert near.stat(ONE) == 1


def test_a_near_store_that_hangs_holds_up_a_put_for_a_moment_only(far: Moody) -> None:
    class Hanging(Moody):
        let_go = threading.Event()

        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            self.let_go.wait(30)
            return super().put_if_absent(name, source, size)

    near = Hanging()
    tiered = Tiered(near, far)
    data = os.urandom(20 << 20)
    assert put(tiered, ONE, data)
    assert read(far, ONE) == data
    near.let_go.set()
    assert tiered.settle(30)
    assert list(near.names()) == []


def test_a_near_store_that_is_slow_holds_up_a_put_for_a_moment_only(
    far: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "_PATIENCE_S", 0.2)

    class Slow(Moody):
        given, over = 0, threading.Event()

        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            while source.readinto(memoryview(bytearray(1 << 20))):
                self.given += 1
                self.over.wait(0.05)  # 20 MiB a second
            raise AssertionError("it would have been given to the end")

    near = Slow()
    tiered = Tiered(near, far)
    data = bytes(80 << 20)
    assert put(tiered, ONE, data)
    assert near.given < 60, "it was not waited for, but for what a pipe takes ahead and a moment"
    near.over.set()
    assert tiered.settle(30)
    assert far.stat(ONE) == len(data)


def test_a_near_store_that_takes_no_more_holds_up_only_the_first_of_many_puts(
    far: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fill, "_PATIENCE_S", 0.2)

    class Stuck(Moody):
        let_go = threading.Event()

        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            self.let_go.wait(30)
            return super().put_if_absent(name, source, size)

    near = Stuck()
    tiered = Tiered(near, far)
    began = time.monotonic()
    for number in range(60):
        assert put(tiered, f"{number:064x}", b"x")
    assert time.monotonic() - began < 5, "and not 0.2 s for each of them"
    near.let_go.set()
    assert tiered.settle(30)
    assert len(list(far.names())) == 60
    assert len(list(near.names())) == 8
    assert put(tiered, "f" * 64, b"x")
    assert tiered.settle(30)
    assert near.stat("f" * 64) == 1, "there is a place again"


def test_what_is_deleted_does_not_come_back_from_a_fill(far: Moody) -> None:
    class Slow(Moody):
        begun, go_on = threading.Event(), threading.Event()

        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            self.begun.set()
            assert self.go_on.wait(30)
            return super().put_if_absent(name, source, size)

    near = Slow()
    tiered = Tiered(near, far)
    put(tiered, ONE, b"x")
    assert near.begun.wait(30)
    deleting = threading.Thread(target=tiered.delete, args=(ONE,))
    deleting.start()
    near.go_on.set()
    deleting.join(30)
    assert list(near.names()) == list(far.names()) == []
    with pytest.raises(NotFound), tiered.get(ONE):
        pass


def test_what_is_there_is_what_the_far_store_says(tiered: Tiered, near: Moody, far: Moody) -> None:
    put(near, ONE, b"left by another far store")
    put(far, TWO, b"x")
    assert tiered.stat(ONE) is None
    assert list(tiered.names()) == [TWO]
    assert put(tiered, ONE, b"durable")
    assert read(far, ONE) == b"durable"


# -- bad copies


@pytest.fixture
def blobs(tiered: Tiered) -> BlobStore:
    return BlobStore(tiered, KeyRing.new())


def test_a_damaged_near_copy_is_deleted_and_the_far_one_is_read(
    blobs: BlobStore, tiered: Tiered, near: Moody, far: Moody, tmp_path: Path
) -> None:
    data = os.urandom(3 << 20)
    digest = blobs.put_bytes(data).digest
    assert tiered.settle(30)
    [name] = far.names()
    damage(near, name)
    told: list[int] = []
    blobs.fetch(digest, None, tmp_path / "copy", on_bytes=told.append)
    assert (tmp_path / "copy").read_bytes() == data
    assert sum(told) == len(data)
    assert blobs.counters.corrupt == 1
    assert tiered.settle(30)
    assert read(near, name) == read(far, name)


def test_a_damaged_near_copy_and_a_damaged_far_one_are_told_and_deleted(
    blobs: BlobStore, tiered: Tiered, near: Moody, far: Moody
) -> None:
    digest = blobs.put_bytes(b"data").digest
    assert tiered.settle(30)
    [name] = far.names()
    damage(near, name)
    damage(far, name)
    with pytest.raises(IntegrityError, match="put it again"):
        blobs.read_bytes(digest, 100)
    assert tiered.settle(30)
    assert list(near.names()) == list(far.names()) == []
    assert blobs.put_bytes(b"data").digest == digest
    assert blobs.read_bytes(digest, 100) == b"data"


def test_a_far_copy_that_does_not_open_never_becomes_a_near_one(
    blobs: BlobStore, tiered: Tiered, near: Moody, far: Moody
) -> None:
    digest = blobs.put_bytes(os.urandom(9 << 20)).digest
    assert tiered.settle(30)
    [name] = far.names()
    near.delete(name)
    damage(far, name)
    with pytest.raises(IntegrityError):
        blobs.read_bytes(digest, 10 << 20)
    assert tiered.settle(30)
    assert list(near.names()) == []


def test_bit_rot_that_the_near_store_sees_itself_costs_the_near_copy_only(
    blobs: BlobStore, tiered: Tiered, near: Moody, far: Moody
) -> None:
    digest = blobs.put_bytes(b"data").digest
    assert tiered.settle(30)
    near.rotten = True
    assert blobs.read_bytes(digest, 100) == b"data"
    assert len(list(far.names())) == 1


def test_a_near_store_that_stops_in_the_middle_is_given_up_for_the_far_one(
    blobs: BlobStore, tiered: Tiered, near: Moody, tmp_path: Path
) -> None:
    data = os.urandom(3 << 20)
    digest = blobs.put_bytes(data).digest
    assert tiered.settle(30)
    near.cut = 2 << 20
    blobs.fetch(digest, None, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data


def test_a_near_copy_that_goes_away_while_it_is_read_costs_no_other_near_copy(
    blobs: BlobStore, tiered: Tiered, near: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = blobs.put_bytes(b"one" * 1000), blobs.put_bytes(b"two" * 1000)
    assert tiered.settle(10)
    near.cut, lost = 1000, CopyLost("was replaced or deleted while it was read")
    monkeypatch.setattr(near, "cut_short", lost)
    assert blobs.read_bytes(one.digest, 3000) == b"one" * 1000
    near.cut = None
    tries = near.tries
    assert blobs.read_bytes(two.digest, 3000) == b"two" * 1000
    assert near.tries == tries + 1


def test_a_far_store_that_is_away_is_said(blobs: BlobStore, tiered: Tiered, near: Moody, far: Moody) -> None:
    digest = blobs.put_bytes(b"data").digest
    assert tiered.settle(30)
    far.away = True
    assert blobs.read_bytes(digest, 100) == b"data"
    damage(near, next(near.names()))
    with pytest.raises(StoreUnavailable):
        blobs.read_bytes(digest, 100)
    far.away = False
    assert blobs.read_bytes(digest, 100) == b"data"


def test_a_near_copy_that_is_bad_and_cannot_be_deleted_does_not_keep_from_the_far_one(
    blobs: BlobStore, tiered: Tiered, near: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = blobs.put_bytes(b"data").digest
    assert tiered.settle(30)
    damage(near, next(near.names()))

    def read_only(name: str) -> None:
        raise StoreUnavailable("read-only file system")

    monkeypatch.setattr(near, "delete", read_only)
    assert blobs.read_bytes(digest, 100) == b"data"
    assert blobs.read_bytes(digest, 100) == b"data"


def test_a_near_store_for_which_no_thread_can_be_started_costs_nothing_else(
    tiered: Tiered, near: Moody, far: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more)
        for number in range(20):
            assert put(tiered, f"{number:064x}", b"x" * (5 << 20 if number == 0 else 1))
        assert tiered.settle(0)
    assert list(near.names()) == []
    assert len(list(far.names())) == 20
    assert put(tiered, "f" * 64, b"x")
    assert tiered.settle(30)
    assert list(near.names()) == ["f" * 64]


# -- a store that forgets


def bounded(store: Store, folder: Path, limit_bytes: int = 3 * 4096) -> Bounded:
    made = Bounded(store, Index(folder), limit_bytes)
    made.count()
    return made


def test_what_was_used_least_goes_first_and_the_budget_holds(near: Moody, tmp_path: Path) -> None:
    store = bounded(near, tmp_path)
    for name in (ONE, TWO, THREE):
        assert put(store, name, b"x")
    read(store, ONE)
    assert put(store, FOUR, b"x")
    assert sorted(near.names()) == [ONE, THREE, FOUR]
    assert put(store, TWO, b"x" * 5000)
    assert sorted(near.names()) == [TWO, FOUR]
    assert (store.held_bytes, store.evictions) == (3 * 4096, 3)


def test_what_is_larger_than_the_budget_is_refused_and_nothing_goes_for_it(near: Moody, tmp_path: Path) -> None:
    store = bounded(near, tmp_path)
    put(store, ONE, b"x")
    with pytest.raises(DiskFull, match="no room"):
        put(store, TWO, b"x" * (3 * 4096 + 1))
    assert list(near.names()) == [ONE]


def test_a_put_that_fails_gives_its_room_back(near: Moody, tmp_path: Path) -> None:
    store = bounded(near, tmp_path)
    near.full = True
    with pytest.raises(DiskFull):
        put(store, ONE, b"x" * 9000)
    assert store.held_bytes == 0


def test_what_cannot_be_deleted_still_counts(near: Moody, tmp_path: Path) -> None:
    store = bounded(near, tmp_path)
    for name in (ONE, TWO, THREE):
        put(store, name, b"x")
    near.away = True
    with pytest.raises(StoreUnavailable):
        put(store, FOUR, b"x")
    assert store.held_bytes == 3 * 4096
    near.away = False
    assert put(store, FOUR, b"x")
    assert len(list(near.names())) == 3


def test_an_account_is_made_true_at_the_start(near: Moody, tmp_path: Path) -> None:
    store = bounded(near, tmp_path)
    for name in (ONE, TWO, THREE):
        put(store, name, b"x")
    read(store, ONE)
    near.delete(TWO)
    put(near, FOUR, b"x" * 4097)
    store = Bounded(near, Index(tmp_path), 3 * 4096)
    with pytest.raises(DiskFull, match="still being counted"):
        put(store, TWO, b"x")
    assert read(store, ONE) == b"x"
    store.count()
    assert sorted(near.names()) == [ONE, THREE]  # what the index did not know counts as the least used
    assert store.held_bytes == 2 * 4096


def test_an_account_follows_objects_that_somebody_else_has_replaced(near: Moody, tmp_path: Path) -> None:
    store = bounded(near, tmp_path)
    for name in (ONE, TWO, THREE):
        put(store, name, b"x")
    near.delete(TWO)
    put(near, TWO, b"x" * 4097)
    store = Bounded(near, Index(tmp_path), 5 * 4096)
    store.count()
    assert store.held_bytes == 4 * 4096
    store = Bounded(near, Index(tmp_path), 3 * 4096)
    store.count()
    assert sorted(near.names()) == [TWO, THREE]
    assert store.held_bytes == 3 * 4096


def test_a_lost_index_costs_a_look_at_each_object(near: Moody, tmp_path: Path) -> None:
    put(near, ONE, b"x" * 4097)
    assert bounded(near, tmp_path).held_bytes == 2 * 4096


def test_an_object_that_somebody_else_deleted_leaves_the_account(near: Moody, tmp_path: Path) -> None:
    store = bounded(near, tmp_path)
    put(store, ONE, b"x")
    near.delete(ONE)
    with pytest.raises(NotFound), store.get(ONE):
        pass
    assert store.held_bytes == 0


def test_many_threads_in_a_small_store_never_take_more_than_the_budget(tmp_path: Path) -> None:
    most = [0]

    class Watched(MemoryStore):
        def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
            made = super().put_if_absent(name, source, size)
            most[0] = max(most[0], len(list(self.names())))
            return made

    store = bounded(Watched(), tmp_path, 4 * 4096)
    errors: list[Exception] = []

    def use(seed: int) -> None:
        for number in range(40):
            try:
                put(store, f"{(number * seed) % 16:064x}", b"x")
            except DiskFull:
                continue  # all that is there is being put
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in (1, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert most[0] <= 4
    assert store.held_bytes <= 4 * 4096


# -- the small ones


def test_what_moves_is_counted() -> None:
    store = Counted(MemoryStore())
    put(store, ONE, b"data")
    put(store, ONE, b"data")
    read(store, ONE)
    with pytest.raises(NotFound), store.get(TWO):
        pass
    assert (store.counts.puts, store.counts.put_bytes, store.counts.gets, store.counts.get_bytes) == (1, 4, 1, 4)


def test_a_store_that_was_away_at_the_start_is_reached_later() -> None:
    made = MemoryStore()
    away = [True]

    def make() -> Store:
        if away[0]:
            raise StoreUnavailable("away")
        return made

    late = Late(make)
    with pytest.raises(StoreUnavailable):
        late.stat(ONE)
    away[0] = False
    assert put(late, ONE, b"x")
    away[0] = True
    assert read(late, ONE) == b"x"
    assert isinstance(late.get(ONE), AbstractContextManager)
