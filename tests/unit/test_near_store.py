"""A near store is a place of one node alone: whatever else --near names is refused, and stays as it is."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchyard.broker.errors import InvalidConfig
from batchyard.broker.seal import KeyRing
from batchyard.cache.identity import store_id
from batchyard.cache.index import Index
from batchyard.cache.stores.bounded import Bounded
from batchyard.cache.stores.disk import DirectoryStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.worker import levels
from batchyard.worker.near_store import mark_of, open_near_store

ONE = f"{1:064x}"


def test_the_durable_store_is_refused_as_a_near_one(tmp_path: Path) -> None:
    ring, path = KeyRing.new(), tmp_path / "blobs"
    store_id(DirectoryStore(path), ring, make=True)
    unfinished = path / "new" / ".new-of-another"
    unfinished.touch()
    with pytest.raises(InvalidConfig, match="durable store of a yard"):
        open_near_store(str(path), ring, (), durable="s3://another")
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(InvalidConfig, match="same place"):
        open_near_store(str(path), ring, (), durable=str(tmp_path / "link"))
    assert unfinished.exists()
    assert os.listdir(path / "new") == [".new-of-another"]


def test_objects_that_no_near_store_put_there_are_refused(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store_id(store, KeyRing.new(), make=True)  # of another yard
    before = list(store.names())
    with pytest.raises(InvalidConfig, match="give --near an empty place"):
        open_near_store(str(tmp_path), KeyRing.new(), (), durable="/blobs")
    assert list(store.names()) == before
    assert open_near_store(str(tmp_path), KeyRing.new(), before, durable="/blobs")  # its own, whose mark was lost


def test_an_empty_place_is_marked_and_the_mark_stays(tmp_path: Path) -> None:
    ring = KeyRing.new()
    for _ in range(2):
        store = open_near_store(str(tmp_path / "near"), ring, (), durable="/blobs")
        bounded = Bounded(store, Index(tmp_path), 0, keep=mark_of(ring))
        store.put_if_absent(ONE, io.BytesIO(b"x"), 1)
        bounded.count()
        assert list(store.names()) == [mark_of(ring)]
        assert (bounded.held_bytes, bounded.evictions) == (0, 1)


def test_the_near_store_is_counted_whatever_it_raised_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd(MemoryStore):
        looks = 0

        def names(self) -> Iterator[str]:
            self.looks += 1
            if self.looks == 1:
                raise ValueError("odd")
            return super().names()

    monkeypatch.setattr(levels, "_COUNT_AGAIN_S", 0.0)
    bounded = Bounded(Odd(), Index(tmp_path), 4096)
    levels._count(bounded)
    assert bounded.put_if_absent(ONE, io.BytesIO(b"x"), 1)
