"""New wraps of old objects' keys: how blobs open after a rotation, though their objects are as they were put.

An object's header names the key under which its object key is wrapped. Where that key was retired, the same header
under a later one stands in a *shard* of that later key:

    wraps of KEY                  how many first bits of an object's name number its shard; made once a key
    wraps of KEY: SHARD.GENERATION
                                  (name 32, header) …, sorted by name; a generation has what the earlier ones lack

Shards are kept as `Kept` has it, sealed under that same key. A reader looks for one only when it meets a key that it
does not have: a blob under the current key costs nothing more than before the first rotation.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from batchyard.broker.errors import IntegrityError
from batchyard.broker.seal import HEADER_BYTES, KeyRing

from .kept import Kept
from .stores.protocol import Store

_NAME_BYTES = 32
_RECORD_BYTES = _NAME_BYTES + HEADER_BYTES
SHARD_RECORDS = 2048
"""About how many a shard has: some 300 KB."""
_MOST_BITS = 20
_CACHE_BYTES = 32 << 20
_AGAIN_S = 10.0
"""How long what was not there is taken to be not there."""


def bits_for(count: int) -> int:
    """How many bits number the shards of so many objects."""
    return min(_MOST_BITS, max(0, (max(1, count) - 1).bit_length() - (SHARD_RECORDS - 1).bit_length()))


def shard_of(name: str, bits: int) -> int:
    return int(name[:8], 16) >> (32 - bits)


@dataclass(frozen=True, slots=True)
class Records:
    """One generation of a shard. data: as it is kept."""

    data: bytes

    @classmethod
    def of(cls, headers: Iterable[tuple[str, bytes]]) -> Records:
        return cls(b"".join(bytes.fromhex(name) + header for name, header in sorted(headers)))

    def __post_init__(self) -> None:
        if len(self.data) % _RECORD_BYTES:
            raise IntegrityError("a shard of wraps ends in the middle of one")

    def __len__(self) -> int:
        return len(self.data) // _RECORD_BYTES

    def get(self, name: str) -> bytes | None:
        """The header of the object of this name."""
        wanted = bytes.fromhex(name)
        at = bisect_left(range(len(self)), wanted, key=self._name) * _RECORD_BYTES
        if self.data[at : at + _NAME_BYTES] != wanted:
            return None
        return self.data[at + _NAME_BYTES : at + _RECORD_BYTES]

    def _name(self, index: int) -> bytes:
        return self.data[index * _RECORD_BYTES : index * _RECORD_BYTES + _NAME_BYTES]


class Shards:
    """The shards of one key in the store."""

    def __init__(self, kept: Kept, key_id: str) -> None:
        self._kept, self._key_id = kept, key_id

    def bits(self) -> int | None:
        """None: there are no shards of this key."""
        found = self._kept.get(self._plan)
        return None if found is None else int(found)

    def begin(self, count: int) -> int:
        """The bits, settled now for so many objects if they were not before."""
        return int(self._kept.put(self._plan, str(bits_for(count)).encode()))

    def load(self, shard: int, generation: int) -> Records | None:
        found = self._kept.get(self._what(shard, generation))
        return None if found is None else Records(found)

    def has(self, shard: int, generation: int = 0) -> bool:
        """Whether it has this generation, be it empty, as safely kept as can be."""
        return self._kept.has(self._what(shard, generation))

    def put(self, shard: int, generation: int, records: Records) -> Records:
        """What that generation is then: another process may have been there before."""
        return Records(self._kept.put(self._what(shard, generation), records.data))

    def drop(self) -> None:
        """Forget all of them. When it is killed, the next one goes on."""
        for what in reversed(list(self._all())):
            self._kept.drop(what)

    def names(self) -> Iterator[str]:
        """What their objects are called in the store."""
        for what in self._all():
            yield from self._kept.names(what)

    def _all(self) -> Iterator[str]:
        """The plan first; the last generation of a shard after those before."""
        bits = self.bits()
        if bits is None:
            return
        yield self._plan
        for shard in range(1 << bits):
            generation = 0
            while self._kept.has(self._what(shard, generation)):
                yield self._what(shard, generation)
                generation += 1

    @property
    def _plan(self) -> str:
        return f"wraps of {self._key_id}"

    def _what(self, shard: int, generation: int) -> str:
        return f"{self._plan}: {shard}.{generation}"


@dataclass(slots=True)
class _Known:
    """What was read of a shard. until: when it is worth while to look for another generation."""

    generations: list[Records]
    until: float

    @property
    def bytes(self) -> int:
        return sum(len(one.data) for one in self.generations) + 1024


class Wraps:
    """Finds wraps under the keys of a ring, and remembers shards. Use one for all readers of a store in a process."""

    def __init__(self, store: Store, ring: KeyRing, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._kept, self._ring, self._clock = Kept(store, ring), ring, clock
        self._guard = threading.Lock()
        self._bits: dict[str, tuple[int | None, float]] = {}
        self._known: OrderedDict[tuple[str, int], _Known] = OrderedDict()
        self._bytes = 0
        self._ids = ring.ids

    def find(self, name: str, header: bytes) -> bytes | None:
        """As `KeyRing.opening` asks for it: a header of the same object under a key of the ring, the current one's
        first. SealUnknown: it may be in a shard that does not open. StoreUnavailable.
        """
        current = self._ring.current
        self._look_again_with_other_keys()
        for key_id in (current, *(one for one in self._ring.ids if one != current)):
            found = self._under(key_id, name, header)
            if found is not None:
                return found
        return None

    def _look_again_with_other_keys(self) -> None:
        """What was not there while an old key was still in the ring may be needed now, and is there."""
        ids = self._ring.ids
        with self._guard:
            if ids != self._ids:
                self._ids = ids
                self._bits = {key_id: found for key_id, found in self._bits.items() if found[0] is not None}
                for known in self._known.values():
                    known.until = 0.0

    def _under(self, key_id: str, name: str, header: bytes) -> bytes | None:
        shards = Shards(self._kept, key_id)
        with self._guard:  # one reader at a time fetches; the others then find it here
            bits = self._bits_of(key_id, shards)
            if bits is None:
                return None
            number = shard_of(name, bits)
            known = self._known.pop((key_id, number), None) or _Known([], 0.0)
            self._bytes -= known.bytes if known.generations else 0
            try:
                found = _same(known, name, header)
                if found is None and self._clock() >= known.until:
                    while (more := shards.load(number, len(known.generations))) is not None:
                        known.generations.append(more)
                    known.until = self._clock() + _AGAIN_S
                    found = _same(known, name, header)
            finally:
                self._remember((key_id, number), known)
        return found

    def _bits_of(self, key_id: str, shards: Shards) -> int | None:
        bits, until = self._bits.get(key_id, (None, 0.0))
        if bits is None and self._clock() >= until:
            bits = shards.bits()
            self._bits[key_id] = bits, self._clock() + _AGAIN_S
        return bits

    def _remember(self, key: tuple[str, int], known: _Known) -> None:
        self._known[key] = known
        self._bytes += known.bytes if known.generations else 0
        while self._bytes > _CACHE_BYTES and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._bytes -= oldest.bytes if oldest.generations else 0


def _same(known: _Known, name: str, header: bytes) -> bytes | None:
    """The newest one that is of this very object, and not of one that was put under its name before."""
    for records in reversed(known.generations):
        found = records.get(name)
        if found is not None and KeyRing.same_object(found, header):
            return found
    return None
