"""What nobody needs any more is deleted from the durable store. One process of a yard does it at a time.

A round marks what is due, in Redis, before it deletes it; while it is marked nobody puts it. A round that was killed is
finished by the next one. What jobs that have not ended need is spared: looked for before objects are marked, and once
more after, among what was sent meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache

from redis.exceptions import LockError, RedisError
from redis.lock import Lock

from batchyard.broker import keys
from batchyard.broker.errors import BatchyardError, BlobMissing, InputError, IntegrityError
from batchyard.broker.expiry import Expiry
from batchyard.broker.functions import told
from batchyard.broker.needs import Needs
from batchyard.broker.seal import SealUnknown
from batchyard.broker.store import Yard

from .digest import Digest
from .parts import parts_of
from .sealed import BlobStore

log = logging.getLogger(__name__)
LOCK_S = 60.0
SPARE_S = 1800.0
"""When what a job waits for is looked at again."""
_BATCH = 64


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
            return self._round(early_s, on_freed or (lambda freed: None), lambda: _hold(lock))
        finally:
            try:
                lock.release()
            except RedisError as error:
                log.warning("the lock of the one that deletes is left to run out: %s", error)

    def _round(self, early_s: float, on_freed: Callable[[Freed], None], hold: Callable[[], None]) -> Freed:
        going = dict(self._expiry.going())
        names = [*going, *self._expiry.due(early_s=early_s)]
        if not names:
            return Freed()
        began_ms = int(self._yard.now_s() * 1000)
        spared = self._spare(names, 0, hold)
        going |= self._expiry.mark((name for name in names if name not in spared), early_s=early_s)
        going = {name: marks for name, marks in going.items() if name not in spared}
        more = self._spare(going, began_ms, hold)
        freed = Freed(spared=len(spared | more))
        left = [(name, marks) for name, marks in going.items() if name not in more]
        for at in range(0, len(left), _BATCH):
            hold()
            freed = self._delete(left[at : at + _BATCH], freed)
            on_freed(freed)
        return freed

    def _delete(self, some: list[tuple[str, frozenset[str]]], freed: Freed) -> Freed:
        done: list[str] = []
        objects, bytes_ = freed.objects, freed.bytes
        try:
            for name, marks in some:
                size = self._blobs.delete(name, marks)
                done.append(name)
                objects, bytes_ = objects + (size is not None), bytes_ + (size or 0)
        finally:
            self._expiry.gone(done)
        others = freed.others + len(done) - (objects - freed.objects)
        return Freed(objects=objects, bytes=bytes_, spared=freed.spared, others=others)

    # -- what is needed
    def _spare(self, names: Collection[str], since_ms: int, hold: Callable[[], None]) -> set[str]:
        if not names:
            return set()
        needed = self._needed(frozenset(names), since_ms, hold)
        self._expiry.spare(needed, SPARE_S)
        return needed

    def _needed(self, names: frozenset[str], since_ms: int, hold: Callable[[], None]) -> set[str]:
        found: dict[str, tuple[str, Digest]] = {}
        blobs_of = cache(self._blobs.of)

        def hear(tenant: str, digests: set[str]) -> None:
            for digest in digests:
                if (name := blobs_of(tenant).name(digest)) in names:
                    found.setdefault(name, (tenant, digest))

        Needs(self._yard, self._tenants(), hear).look(since_ms=since_ms)
        hold()
        needed = set(found)
        for tenant, digest in found.values():
            blobs = blobs_of(tenant)
            try:
                needed |= {blobs.name(part) for part in parts_of(blobs, digest)} & names
            except SealUnknown:
                raise  # what it names cannot be told here, so nothing is deleted
            except (BlobMissing, IntegrityError, InputError):
                continue  # nothing is left to be kept
            hold()
        return needed


def _hold(lock: Lock) -> None:
    """For as long as LOCK_S from now on."""
    try:
        lock.reacquire()
    except LockError as error:
        raise Busy("it took so long that another process deletes now") from error
    except RedisError as error:
        raise told(error) from error
