"""Wrapping the keys of all objects of a store under the ring's current key. No object is read but for its header, and
none is written; see `wraps`.

It may be killed at any point and run again, also by several at once: a shard is there whole or not at all, and one that
is there is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from batchyard.broker.blobs import OnShard, Rewrapped
from batchyard.broker.errors import IntegrityError, NotFound
from batchyard.broker.seal import HEADER_BYTES, MESSAGE_MAGIC, KeyRing, SealUnknown, read_full

from .identity import refuse_other
from .kept import Kept
from .stores.protocol import Store, Unreadable, levels
from .wraps import Records, Shards, Wraps, shard_of

_THREADS = 8


class Rewrap:
    """Of all objects in a store, whoever's they are. ring: the yard's own; its current key is the new one."""

    def __init__(self, store: Store, ring: KeyRing) -> None:
        self._store, self._ring = levels(store)[-1], ring
        self._wraps = Wraps(store, ring)

    def refuse_other(self, known: str | None) -> None:
        """InvalidConfig unless it is the store with this id: keys that another one needs nothing of are needed here."""
        refuse_other(self._store, self._ring, known)

    def run(self, *, again: bool = False, on_shard: OnShard = lambda done, of: None) -> Rewrapped:
        """One pass. again: look also at shards that were done before, for what was put under an old key since.
        StoreUnavailable, DiskFull; IntegrityError: what an earlier run left does not open.
        """
        shards = self._shards()
        names = list(self._store.names())
        bits = shards.begin(len(names))
        parts = _parted(names, bits)
        done = Rewrapped()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="rewrap") as pool:
            for shard, part in enumerate(parts):
                if not again and shards.has(shard):
                    done.skipped_shards += 1
                else:
                    self._shard(shards, shard, part, pool, done)
                on_shard(shard + 1, len(parts))
        return done

    def _shard(self, shards: Shards, shard: int, names: bytes, pool: ThreadPoolExecutor, done: Rewrapped) -> None:
        there: list[Records] = []
        while (found := shards.load(shard, len(there))) is not None:
            if not shards.has(shard, len(there)):  # who made it was killed before its twin was there
                shards.put(shard, len(there), found)
            there.append(found)
        new: dict[str, bytes] = {}
        for name, header in pool.map(self._headed, _each(names)):
            if header is None:
                continue
            done.objects += 1
            try:
                wrapped = self._wrapped(there, name, header)
            except SealUnknown:
                done.unknown.append(name)
            except IntegrityError:
                done.damaged.append(name)
            else:
                if wrapped is not None:
                    new[name] = wrapped
        done.wrapped += len(new)
        records, generation = Records.of(new.items()), len(there)
        while (
            new or not generation
        ):  # a first generation is kept also when it is empty: it says that this shard is done
            kept = shards.put(shard, generation, records)
            if kept.data == records.data:
                return
            generation += 1  # another process was there first, and what it has may not be all
            if all(_have([kept], name, header) for name, header in new.items()):
                return

    def _wrapped(self, there: list[Records], name: str, header: bytes) -> bytes | None:
        """Its header under the current key; None where it has one. IntegrityError, also on a second look."""
        for last in (False, True):
            try:
                if KeyRing.key_of(header) == self._ring.current or _have(there, name, header):
                    return None
                return self._ring.rewrapped(header, name, self._wraps.find)
            except SealUnknown:
                raise
            except IntegrityError:
                if last:
                    raise
                header = self._headed(name)[1] or b""
        raise AssertionError("the second look returns or raises")

    def census(self) -> Mapping[str, int]:
        """How many objects each key is needed for: those under it, and not wrapped under the current one."""
        shards, counts = self._shards(), Counter[str]()
        names = list(self._store.names())
        bits = shards.bits()
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="census") as pool:
            for shard, part in enumerate(_parted(names, bits or 0)):
                there: list[Records] = []
                while bits is not None and (found := shards.load(shard, len(there))) is not None:
                    there.append(found)
                for name, header in pool.map(self._headed, _each(part)):
                    if header is not None:
                        own = _key_of(header)
                        counts[self._ring.current if _have(there, name, header) else own] += 1
        return counts

    def forget(self, key_id: str) -> None:
        """The wraps under a key that is not the current one: who has the current one needs them no more."""
        if key_id != self._ring.current:
            Shards(Kept(self._store, self._ring), key_id).drop()

    def own_names(self) -> frozenset[str]:
        """What the wraps under the ring's keys are called in the store."""
        kept = Kept(self._store, self._ring)
        return frozenset(name for key_id in self._ring.ids for name in Shards(kept, key_id).names())

    def _shards(self) -> Shards:
        return Shards(Kept(self._store, self._ring), self._ring.current)

    def _headed(self, name: str) -> tuple[str, bytes | None]:
        """With its beginning; None where there is no object any more, or one that the yard itself keeps."""
        try:
            header = first_bytes(self._store, name, HEADER_BYTES)
        except NotFound:
            return name, None
        except Unreadable:
            return name, b""
        return name, None if header.startswith(MESSAGE_MAGIC) else header


def first_bytes(store: Store, name: str, count: int) -> bytes:
    """The first `count` bytes of an object, or all. A store that can give so few more cheaply has `first`. NotFound,
    StoreUnavailable.
    """
    first: Callable[[str, int], bytes] | None = getattr(store, "first", None)
    if first is not None:
        return first(name, count)
    with store.get(name) as reader:
        buffer = bytearray(count)
        return bytes(buffer[: read_full(reader, memoryview(buffer))])


def _key_of(header: bytes) -> str:
    try:
        return KeyRing.key_of(header)
    except IntegrityError:
        return "damaged"


def _have(there: list[Records], name: str, header: bytes) -> bool:
    """Whether one of these is a wrap of this very object."""
    for records in there:
        found = records.get(name)
        if found is not None and KeyRing.same_object(found, header):
            return True
    return False


def _parted(names: list[str], bits: int) -> list[bytes]:
    """The names of each shard, 32 bytes each: a store may have millions."""
    parts = [bytearray() for _ in range(1 << bits)]
    for name in names:
        parts[shard_of(name, bits)] += bytes.fromhex(name)
    return [bytes(part) for part in parts]


def _each(names: bytes) -> Iterator[str]:
    return (names[at : at + 32].hex() for at in range(0, len(names), 32))
