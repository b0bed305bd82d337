"""A store that forgets: what was used last, within a budget of bytes."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice

from batchyard.broker.errors import DiskFull, NotFound
from batchyard.broker.seal import Readable

from ..index import Index
from ..shelf import Entry, Shelf, charge
from .protocol import Store, check_name, sizes_of

log = logging.getLogger(__name__)
LEVEL = "near"
"""What the index calls this level."""


class Bounded:
    """Use for a store of which one process is the only writer. Objects count their size in whole blocks of 4 KiB.

    It keeps its own account, since a store's own quota comes late. An account may say too much for a while, never too
    little. Until `count` has compared it with a list of what is there, nothing new is taken (DiskFull); what is there
    can be read. keep: the name of an object that neither counts nor goes.
    """

    def __init__(self, store: Store, index: Index, limit_bytes: int, *, keep: str | None = None) -> None:
        self._store, self._index, self._keep = store, index, keep
        self._guard = threading.Lock()
        self._shelf = Shelf(limit_bytes, (entry for _, entry in index.load(LEVEL)))
        self._used = max((entry.used for entry in self._shelf), default=0)
        self._putting: Counter[str] = Counter()  # what is being put stays until all who put it are done
        self._counted = False
        self.crowded = threading.Event()
        """set when there is more than the soft limit, for who makes room ahead by `tidy`"""
        self.evictions = 0

    @property
    def held_bytes(self) -> int:
        with self._guard:
            return self._shelf.held_bytes

    def last_used(self, most: int, *, least_bytes: int) -> list[str]:
        """Names of objects that count so much at least, the last used first."""
        with self._guard:
            found = (e.key for e in self._shelf.last(len(self._shelf)) if e.bytes >= least_bytes)
            return list(islice(found, most))

    def count(self) -> None:
        """Make the account true: once, after the start. StoreUnavailable: to be called again."""
        if self._counted:
            return
        seen: set[str] = set()
        for name, size in sizes_of(self._store):
            if name == self._keep:
                continue
            seen.add(name)
            with self._guard:
                known = self._shelf.get(name)
                if known is None or known.bytes != charge(size):  # as somebody else has left it
                    self._shelf.put(Entry(key=name, bytes=charge(size), used=known.used if known is not None else 0))
        with self._guard:
            for gone in [entry.key for entry in self._shelf if entry.key not in seen]:
                self._shelf.remove(gone)
            self._shelf.sort()
            self._index.save_all(LEVEL, [("", entry) for entry in self._shelf])
            over = self._shelf.held_bytes - self._shelf.limit_bytes
            victims = self._take_out(self._shelf.least_used(over, self._putting.__contains__))
            self._counted = True
        self._evict(victims)

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        self._reserve(check_name(name), charge(size))
        try:
            made = self._store.put_if_absent(name, source, size)
        except BaseException:
            self._done(name, None)
            raise
        self._done(name, charge(size))
        return made

    def _done(self, name: str, bytes_: int | None) -> None:
        """One put of it is over. bytes_: what the object counts that is there now; None: there may be none."""
        with self._guard:
            self._putting[name] -= 1
            if not self._putting[name]:
                del self._putting[name]
            entry = self._shelf.get(name)
            if bytes_ is not None:
                self._used += 1
                entry = Entry(key=name, bytes=bytes_, used=self._used)
                self._shelf.put(entry)
                self._index.save(LEVEL, "", entry)
                if self._shelf.is_crowded:
                    self.crowded.set()
            elif name not in self._putting and entry is not None and not entry.here:
                self._shelf.remove(name)

    def _reserve(self, name: str, bytes_: int) -> None:
        """Room for an object, unless it is in the account already. `_done` comes after each that did not raise."""
        with self._guard:
            if not self._counted:
                raise DiskFull("what the near store holds is still being counted; try again")
            if self._shelf.get(name) is not None:
                self._putting[name] += 1
                return
            found = self._shelf.victims(bytes_, self._putting.__contains__)
            if found is None:
                raise DiskFull(f"object {name} has no room in the near store's {self._shelf.limit_bytes} bytes")
            self._putting[name] += 1
            victims = self._take_out(found)
            self._shelf.put(Entry(key=name, bytes=bytes_, used=self._used, here=False))
        try:
            self._evict(victims)
        except BaseException:
            self._done(name, None)
            raise

    def tidy(self) -> None:
        """Makes room down to the soft limit. StoreUnavailable."""
        self.crowded.clear()
        with self._guard:
            victims = self._take_out(self._shelf.surplus(self._putting.__contains__)) if self._counted else []
        self._evict(victims)

    def held(self) -> list[str]:
        """Names of what is here."""
        with self._guard:
            return [entry.key for entry in self._shelf if entry.here]

    def look(self, name: str) -> AbstractContextManager[Readable]:
        """As `get`, but it is no use of the object."""
        return self._store.get(name)

    def _take_out(self, victims: list[Entry]) -> list[Entry]:
        for entry in victims:
            self._shelf.remove(entry.key)
        self._index.remove(LEVEL, [entry.key for entry in victims])
        return victims

    def _evict(self, victims: list[Entry]) -> None:
        """What could not be deleted is still there, and counts."""
        left = list(victims)
        try:
            while left:
                self._store.delete(left[-1].key)
                left.pop()
        finally:
            with self._guard:
                self.evictions += len(victims) - len(left)
                for entry in left:
                    if self._shelf.get(entry.key) is None:
                        self._shelf.put(entry)
                        self._index.save(LEVEL, "", entry)

    def _forget(self, name: str) -> None:
        """Out of the account, unless it is being put."""
        with self._guard:
            if name not in self._putting and self._shelf.get(name) is not None:
                self._shelf.remove(name)
                self._index.remove(LEVEL, [name])

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        with ExitStack() as stack:
            try:
                reader = stack.enter_context(self._store.get(name))
            except NotFound:
                self._forget(name)
                raise
            self._touch(name)
            yield reader

    def _touch(self, name: str) -> None:
        with self._guard:
            entry = self._shelf.use(name, self._used + 1)
            if entry is not None:
                self._used = entry.used
                self._index.save(LEVEL, "", entry)

    def stat(self, name: str) -> int | None:
        return self._store.stat(name)

    def delete(self, name: str) -> None:
        self._store.delete(name)
        self._forget(name)

    def names(self) -> Iterator[str]:
        return self._store.names()
