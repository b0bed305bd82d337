"""Whoever is told to stop waits for no copy any more, and ends no fetch that another one waits for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchyard.broker.seal import KeyRing, Readable
from batchyard.cache.copies.flight import Unwanted
from batchyard.cache.copies.folder import Folder
from batchyard.cache.copies.local import LocalCopies
from batchyard.cache.digest import Blob
from batchyard.cache.index import Index
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore

MIB = 1 << 20


class Slow(MemoryStore):
    """Gives the first megabyte and more, and then nothing before it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.go_on = threading.Event(), threading.Event()

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        with super().get(name) as reader:
            yield _Slow(reader, self)


class _Slow:
    def __init__(self, reader: Readable, store: Slow) -> None:
        self._reader, self._store, self._given = reader, store, 0

    def readinto(self, buffer: memoryview, /) -> int:
        if self._given > 2 * MIB:
            self._store.waits.set()
            assert self._store.go_on.wait(10)
        count = self._reader.readinto(buffer) or 0
        self._given += count
        return count


@pytest.fixture
def store() -> Slow:
    return Slow()


@pytest.fixture
def copies(store: Slow, tmp_path: Path) -> Iterator[LocalCopies]:
    made = LocalCopies(BlobStore(store, KeyRing.new()), Index(tmp_path), [Folder(tmp_path / "copies", 1 << 30)])
    yield made
    made.close()


@pytest.fixture
def blob(copies: LocalCopies) -> Blob:
    return copies.blobs.put_bytes(b"right" * MIB)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_a_fetch_that_nobody_wants_any_more_ends(
    store: Slow, copies: LocalCopies, blob: Blob, pool: ThreadPoolExecutor
) -> None:
    stop = threading.Event()
    staging = pool.submit(copies.stage, blob, "job", None, stop.is_set)
    assert store.waits.wait(10)
    stop.set()
    store.go_on.set()
    with pytest.raises(Unwanted, match="told to stop"):
        staging.result(10)
    assert copies.counts.held_bytes == 0
    assert copies.stage(blob, "next").path.read_bytes() == b"right" * MIB


@pytest.mark.parametrize("first_stops", [True, False])
def test_a_fetch_goes_on_while_one_wants_it(
    store: Slow,
    copies: LocalCopies,
    blob: Blob,
    pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
    first_stops: bool,
) -> None:
    stop, heard = threading.Event(), threading.Event()
    stops = (stop.is_set, lambda: False) if first_stops else (lambda: False, stop.is_set)
    first = pool.submit(copies.stage, blob, "first", None, stops[0])
    assert store.waits.wait(10)
    [flight] = copies._flights.values()
    join = flight.join

    def joined(*args: Any) -> None:
        join(*args)
        heard.set()

    monkeypatch.setattr(flight, "join", joined)
    second = pool.submit(copies.stage, blob, "second", None, stops[1])
    assert heard.wait(10)
    stop.set()
    if not first_stops:
        with pytest.raises(Unwanted):
            second.result(10)  # while the fetch goes on
        assert not first.done()
    store.go_on.set()
    assert first.result(10).path.read_bytes() == b"right" * MIB
    if first_stops:
        assert second.result(10).here
