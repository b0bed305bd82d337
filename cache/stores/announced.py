"""A store that tells what comes into it and what leaves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from batchyard.broker.seal import Readable

from .protocol import Store, sizes_of


class Announced:
    """Use where others want to know what is here. kept: hears name and size of each object that is there after a put,
    gone: the name of each that was deleted. They must neither raise nor take long.
    """

    def __init__(self, store: Store, *, kept: Callable[[str, int], object], gone: Callable[[str], object]) -> None:
        self._store, self._kept, self._gone = store, kept, gone

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        made = self._store.put_if_absent(name, source, size)
        self._kept(name, size)
        return made

    def get(self, name: str) -> AbstractContextManager[Readable]:
        return self._store.get(name)

    def stat(self, name: str) -> int | None:
        return self._store.stat(name)

    def delete(self, name: str) -> None:
        self._store.delete(name)
        self._gone(name)

    def names(self) -> Iterator[str]:
        return self._store.names()

    def sizes(self) -> Iterator[tuple[str, int]]:
        return sizes_of(self._store)
