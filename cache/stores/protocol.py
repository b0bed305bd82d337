"""Where sealed objects are kept: the protocol that every store keeps to.

A store sees sealed bytes under opaque names and is never trusted: what it gives back is opened and verified by the
caller. It needs nothing that S3 does not offer (GET, HEAD, PUT with If-None-Match, LIST, DELETE).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from batchyard.broker.errors import StoreUnavailable
from batchyard.broker.seal import Readable

_NAME = re.compile(r"[0-9a-f]{64}")


class Unreadable(StoreUnavailable):
    """The store answers, knows the object, and does not give its bytes, however often it is asked: bit rot that the
    store itself has seen. A network that fails is plain StoreUnavailable.
    """


class CopyLost(StoreUnavailable):
    """The copy that was read is given up, and there may be another: the same call again reads that one."""


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """The name, unchanged. ValueError: not 64 lower-case hex digits (names become paths and prefixes)."""
    if not is_name(name):
        raise ValueError(f"{name!r:.90} is not an object name: 64 lower-case hex digits")
    return name


class Store(Protocol):
    """Every method MUST raise ValueError for a name that `check_name` refuses, StoreUnavailable when the store does
    not answer, and MUST be safe to call from several threads and processes at once.
    """

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        """Keep the `size` bytes of `source`; whether this call made the object.

        MUST be atomic: readers see the whole object or none, also after a kill at any point. Of several puts of one
        name exactly one MUST return True. If the name is there already it MUST leave that object as it is, return
        False, and SHOULD not read `source`. What is there MUST be durable when it returns, True or False. Nothing may
        become visible if `source` raises (the error passes through) or gives another number of bytes
        (IntegrityError). DiskFull: no space, and nothing is left behind.
        """
        ...

    def get(self, name: str) -> AbstractContextManager[Readable]:
        """The bytes from the first on. NotFound: no such object. A get that has begun MUST survive a delete or end
        early; it MUST NOT go on with another object's bytes. Where a store can tell an end that comes too early, reads
        raise StoreUnavailable, or Unreadable where only a new put can help.
        """
        ...

    def stat(self, name: str) -> int | None:
        """Size in bytes as stored, None if there is no such object."""
        ...

    def delete(self, name: str) -> None:
        """Remove the object. MUST be a success if there is none."""
        ...

    def names(self) -> Iterator[str]:
        """Names of all objects, in any order; those put or deleted meanwhile may be there or not."""
        ...


def sizes_of(store: Store) -> Iterator[tuple[str, int]]:
    """Name and size in bytes of each object, in any order. A store whose list tells sizes has a method `sizes`; others
    are asked for each object. StoreUnavailable.
    """
    told: Callable[[], Iterator[tuple[str, int]]] | None = getattr(store, "sizes", None)
    if told is not None:
        yield from told()
        return
    for name in store.names():
        size = store.stat(name)
        if size is not None:
            yield name, size


def levels(store: Store) -> tuple[Store, ...]:
    """The stores that may each have a copy of an object, the nearest first and the durable one last. Most stores are
    their own only level; one that is made of others names them in `levels`.
    """
    found: tuple[Store, ...] = getattr(store, "levels", (store,))
    return found
