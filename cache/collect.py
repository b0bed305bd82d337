"""What nobody needs any more is deleted from the durable store. One process of a yard does it at a time.

A round marks what is due, in Redis, before it deletes it; while it is marked nobody puts it. A round that was killed is
finished by the next one. What jobs that have not ended need is spared: looked for before objects are marked, and once
more after, among what was sent meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache

from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from batchyard.broker import keys
from batchyard.broker.errors import BatchyardError, BlobMissing, InputError, IntegrityError
from batchyard.broker.expiry import AT_ONCE, Expiry
from batchyard.broker.functions import told
from batchyard.broker.needs import Needs
from batchyard.broker.seal import SealUnknown
from batchyard.broker.store import Yard

from .digest import Digest
from .parts import parts_of
from .sealed import BlobStore

log = logging.getLogger(__name__)
LOCK_S = 60.0
"""Longer than a store takes to answer one call, or to refuse to."""
KEEP_S = 5.0
"""How often who deletes says that it still does."""
SPARE_S = 1800.0
"""When what a job waits for is looked at again."""
_BATCH = 64
_MOST_FILES = 100_000
"""Of which it is remembered that they are no trees."""


class Busy(BatchyardError):
    """Another process does it just now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Freed:
    """What a round did. spared: due, but a job that has not ended needs them. others: known, but not those that were
    put then: they stay. bytes: as stored.
    """

    objects: int = 0
    bytes: int = 0
    spared: int = 0
    others: int = 0


class Collector:
    """tenants: of each queue, by its name."""

    def __init__(self, yard: Yard, blobs: BlobStore, tenants: Callable[[], Mapping[str, str]]) -> None:
        self._yard, self._blobs, self._tenants = yard, blobs, tenants
        self._expiry = Expiry(yard)
        self._files: set[str] = set()

    def round(
        self, *, early_s: float = 0.0, wait_s: float = 0.0, on_freed: Callable[[Freed], None] | None = None
    ) -> Freed:
        """Deletes all that is due. Busy: another one does, also after wait_s. BrokerUnavailable, StoreUnavailable: what
        was marked is deleted by the next round.

        early_s: see `Expiry.due`. on_freed: hears how far it is.
        """
        lock = Lock(self._yard.redis, keys.BLOBS_LOCK, timeout=LOCK_S, thread_local=False)
        if not self._yard.guard(lambda: lock.acquire(blocking=wait_s > 0, blocking_timeout=wait_s or None)):
            raise Busy("another process deletes just now; try again in a moment")
        try:
            return self._round(early_s, on_freed or (lambda freed: None), _Turn(lock))
        finally:
            try:
                lock.release()
            except RedisError as error:
                log.warning("the lock of the one that deletes is left to run out: %s", error)

    def _round(self, early_s: float, on_freed: Callable[[Freed], None], turn: _Turn) -> Freed:
        going = dict(self._expiry.going())
        names = [*going, *self._expiry.due(early_s=early_s)]
        if not names:
            return Freed()
        began_ms = int(self._yard.now_s() * 1000)
        spared = self._spare(names, 0, turn)
        going |= self._expiry.mark((name for name in names if name not in spared), early_s=early_s)
        going = {name: marks for name, marks in going.items() if name not in spared}
        more = self._spare(going, began_ms, turn)
        freed = Freed(spared=len(spared | more))
        left = [(name, marks) for name, marks in going.items() if name not in more]
        for at in range(0, len(left), _BATCH):
            freed = self._delete(left[at : at + _BATCH], freed, turn)
            on_freed(freed)
        return freed

    def _delete(self, some: list[tuple[str, frozenset[str]]], freed: Freed, turn: _Turn) -> Freed:
        done: list[str] = []
        objects, bytes_ = freed.objects, freed.bytes
        try:
            for name, marks in some:
                turn.keep()
                size = self._blobs.delete(name, marks, sure=turn.renew)
                done.append(name)
                objects, bytes_ = objects + (size is not None), bytes_ + (size or 0)
        finally:
            turn.renew()  # who has lost it says nothing: the next one finds these marked still
            self._expiry.gone(done)
        others = freed.others + len(done) - (objects - freed.objects)
        return Freed(objects=objects, bytes=bytes_, spared=freed.spared, others=others)

    # -- what is needed
    def _spare(self, names: Collection[str], since_ms: int, turn: _Turn) -> set[str]:
        if not names:
            return set()
        needed = self._needed(frozenset(names), since_ms, turn)
        self._expiry.spare(needed, SPARE_S)
        return needed

    def _needed(self, names: frozenset[str], since_ms: int, turn: _Turn) -> set[str]:
        """Of these, also what is in a tree that is not among them itself, as one that was spared before."""
        heard: dict[str, tuple[str, Digest]] = {}
        found: dict[str, tuple[str, Digest]] = {}
        blobs_of = cache(self._blobs.of)

        def sift() -> None:
            found.update((name, heard[name]) for name in self._expiry.lapsed(heard))
            heard.clear()
            turn.keep()

        def hear(tenant: str, digests: set[str]) -> None:
            for digest in digests:
                if (name := blobs_of(tenant).name(digest)) not in found:
                    heard[name] = (tenant, digest)
            if len(heard) >= AT_ONCE:
                sift()

        Needs(self._yard, self._tenants(), hear, on_step=turn.keep).look(since_ms=since_ms)
        sift()
        needed = names & found.keys()
        for name, (tenant, digest) in found.items():
            turn.keep()
            if name not in self._files:
                needed |= names & self._made_of(blobs_of(tenant), digest)
        turn.renew()
        return set(needed)

    def _made_of(self, blobs: BlobStore, digest: Digest) -> set[str]:
        try:
            parts = parts_of(blobs, digest)
        except SealUnknown:
            raise  # what it names cannot be told here, so nothing is deleted
        except (BlobMissing, IntegrityError, InputError):
            return set()  # nothing is left to be kept
        if len(parts) == 1 and len(self._files) < _MOST_FILES:
            self._files.add(blobs.name(digest))
        return {blobs.name(part) for part in parts}


class _Turn:
    """The lock of the one that deletes. Both raise Busy where it is another one's, and BrokerUnavailable."""

    def __init__(self, lock: Lock) -> None:
        self._lock, self._renewed = lock, time.monotonic()

    def renew(self) -> None:
        """For LOCK_S from now on."""
        try:
            self._lock.reacquire()
        except LockError as error:
            raise Busy("it took so long that another process deletes now") from error
        except RedisError as error:
            raise told(error) from error
        self._renewed = time.monotonic()

    def keep(self) -> None:
        """Now and then the same."""
        if time.monotonic() >= self._renewed + KEEP_S:
            self.renew()
