"""A look at all that a store holds."""

from __future__ import annotations

import io
from collections.abc import Iterator

from batchyard.broker.seal import KeyRing
from batchyard.cache.sealed import BlobStore
from batchyard.cache.stores.memory import MemoryStore
from batchyard.cache.survey import Survey


class Listing(MemoryStore):
    """Its list tells sizes, as a bucket's does."""

    asked = 0

    def stat(self, name: str) -> int | None:
        self.asked += 1
        return super().stat(name)

    def sizes(self) -> Iterator[tuple[str, int]]:
        return ((name, MemoryStore.stat(self, name) or 0) for name in self.names())


def test_sizes_are_taken_from_the_list_and_no_object_is_asked_for_its_own() -> None:
    store = Listing()
    for n in range(3):
        store.put_if_absent(f"{n:064x}", io.BytesIO(b"x" * n), n)
    store.asked = 0
    assert sorted(Survey(store, BlobStore(store, KeyRing.new())).sizes()) == [0, 1, 2]
    assert store.asked == 0
