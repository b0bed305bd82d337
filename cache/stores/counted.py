"""A store that is counted: how much was read from it and put into it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from batchyard.broker.seal import Readable

from .protocol import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCounts:
    """Since start. gets: objects found and read; puts: objects made. Bytes are sealed ones."""

    gets: int = 0
    get_bytes: int = 0
    puts: int = 0
    put_bytes: int = 0


class Counted:
    """Use where people are told what moves. Everything else is as in the store within."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._guard = threading.Lock()
        self.counts = StoreCounts()

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        made = self._store.put_if_absent(name, source, size)
        if made:
            with self._guard:
                now = self.counts
                self.counts = replace(now, puts=now.puts + 1, put_bytes=now.put_bytes + size)
        return made

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        with self._store.get(name) as reader:
            counting = _Counting(reader)
            try:
                yield counting
            finally:
                with self._guard:
                    now = self.counts
                    self.counts = replace(now, gets=now.gets + 1, get_bytes=now.get_bytes + counting.bytes)

    def stat(self, name: str) -> int | None:
        return self._store.stat(name)

    def delete(self, name: str) -> None:
        self._store.delete(name)

    def names(self) -> Iterator[str]:
        return self._store.names()


class _Counting:
    def __init__(self, reader: Readable) -> None:
        self._reader, self.bytes = reader, 0

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._reader.readinto(buffer) or 0
        self.bytes += count
        return count
