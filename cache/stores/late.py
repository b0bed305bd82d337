"""A store that may be away when it is wanted first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from batchyard.broker.seal import Readable

from .protocol import Store, check_name, sizes_of


class Late:
    """Use where a process must start without its store. `make` is called until it has once not raised
    StoreUnavailable; what else it raises passes through each time.
    """

    def __init__(self, make: Callable[[], Store]) -> None:
        self._make = make
        self._made: Store | None = None

    def reach(self) -> Store:
        """The store itself. StoreUnavailable: it is still away."""
        if self._made is None:
            self._made = self._make()  # by two threads at once: fine, and nobody waits for another's connect
        return self._made

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        return self.reach().put_if_absent(check_name(name), source, size)

    def get(self, name: str) -> AbstractContextManager[Readable]:
        return self.reach().get(check_name(name))

    def stat(self, name: str) -> int | None:
        return self.reach().stat(check_name(name))

    def delete(self, name: str) -> None:
        self.reach().delete(check_name(name))

    def names(self) -> Iterator[str]:
        return self.reach().names()

    def sizes(self) -> Iterator[tuple[str, int]]:
        return sizes_of(self.reach())
