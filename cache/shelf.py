"""What one place holds, by last use, within a budget of bytes. Pure: its user does the locking and moves the bytes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

_BLOCK_BYTES = 4096
SOFT = 0.9
"""The part of a limit down to which room is made ahead, so that what comes next need not wait for it."""


def charge(size_bytes: int) -> int:
    """What a file, directory or object of this size counts: whole blocks of 4 KiB, and one at least, for its name."""
    return max(1, -(-size_bytes // _BLOCK_BYTES)) * _BLOCK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """bytes: what it counts. used: grows with each use of anything. here: whole; else room that is kept for it. stamp:
    what it looked like (`lookover`); "" if nobody knows, so that it must not be given out.
    """

    key: str
    bytes: int
    used: int
    here: bool = True
    stamp: str = ""


class Shelf:
    """Entries in order of their last use."""

    def __init__(self, limit_bytes: int, entries: Iterable[Entry] = ()) -> None:
        self.limit_bytes, self.held_bytes = limit_bytes, 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        for entry in entries:
            self.put(entry)
        self.sort()

    def __iter__(self) -> Iterator[Entry]:
        """The least recently used first."""
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def put(self, entry: Entry) -> None:
        """Take an entry, as the last one used, for whatever had its key."""
        self.remove(entry.key)
        self._entries[entry.key] = entry
        self.held_bytes += entry.bytes

    def use(self, key: str, used: int) -> Entry | None:
        """The entry, which is the last one used from now on; None unless it is here."""
        entry = self._entries.get(key)
        if entry is None or not entry.here:
            return None
        entry = self._entries[key] = replace(entry, used=used)
        self._entries.move_to_end(key)
        return entry

    def remove(self, key: str) -> Entry | None:
        """The entry that is gone now, if there was one."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.held_bytes -= entry.bytes
        return entry

    def last(self, most: int) -> list[Entry]:
        """Those that are here, the last used first."""
        return list(islice((entry for entry in reversed(self._entries.values()) if entry.here), most))

    def sort(self) -> None:
        """Into the order of use, after entries were put in another one."""
        self._entries = OrderedDict(sorted(self._entries.items(), key=lambda item: item[1].used))

    def victims(self, need_bytes: int, pinned: Callable[[str], bool]) -> list[Entry] | None:
        """The least recently used entries that have to go for `need_bytes`; None: not even all unpinned are enough."""
        over = self.held_bytes + need_bytes - self.limit_bytes
        found = self.least_used(over, pinned)
        return found if need_bytes <= self.limit_bytes and sum(entry.bytes for entry in found) >= over else None

    @property
    def is_crowded(self) -> bool:
        """Whether more is held than the soft limit."""
        return self.held_bytes > self.limit_bytes * SOFT

    def surplus(self, pinned: Callable[[str], bool]) -> list[Entry]:
        """The least recently used entries that are above the soft limit; never the last used one, which may be larger
        than the soft limit by itself.
        """
        newest = next(reversed(self._entries), None)
        over = math.ceil(self.held_bytes - self.limit_bytes * SOFT)
        return self.least_used(over, lambda key: key == newest or pinned(key))

    def least_used(self, bytes_: int, pinned: Callable[[str], bool]) -> list[Entry]:
        """The least recently used entries that count so much together, or all that are here and not pinned."""
        found: list[Entry] = []
        freed = 0
        for entry in self:
            if freed >= bytes_:
                break
            if entry.here and not pinned(entry.key):
                found.append(entry)
                freed += entry.bytes
        return found


class Pins:
    """Which keys must stay, and for whom. An owner pins a key once, however often it asks."""

    def __init__(self, pins: Iterable[tuple[str, str]] = ()) -> None:
        self._of: dict[str, set[str]] = {}
        self._count: dict[str, int] = {}
        for owner, key in pins:
            self.add(owner, key)

    def __contains__(self, key: object) -> bool:
        return key in self._count

    def owners(self) -> set[str]:
        return set(self._of)

    def add(self, owner: str, key: str) -> bool:
        """Whether that was new."""
        keys = self._of.setdefault(owner, set())
        if key in keys:
            return False
        keys.add(key)
        self._count[key] = self._count.get(key, 0) + 1
        return True

    def drop(self, owner: str) -> None:
        """All pins of an owner; fine if it has none."""
        for key in self._of.pop(owner, ()):
            self._count[key] -= 1
            if not self._count[key]:
                del self._count[key]
