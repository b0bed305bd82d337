"""A process follows its key source, and tells the yard which keys it has and seals under.

So a rotation knows when nobody lacks the new key, and when nobody seals under the old one any more.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from . import keys
from .errors import BatchyardError, BrokerUnavailable
from .keysource import KeySource
from .seal import KeyRing
from .store import Yard

log = logging.getLogger(__name__)
EVERY_S = 2.0
_RELOAD_S = 30.0
"""How long a source that cannot tell whether it changed is left alone."""
ALIVE_S = 30.0
_FORGET_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process as it said of itself. ids: of the keys that it has; in_use: of those that it seals under now, also what
    it began before. seen: epoch seconds.
    """

    name: str
    current: str
    ids: tuple[str, ...]
    in_use: tuple[str, ...]
    seen: float

    def alive(self, now_s: float) -> bool:
        return now_s - self.seen <= ALIVE_S


def holder_name(role: str, name: str = "") -> str:
    """`controller of host (pid 7)`: what a process is called here; it says where to look."""
    return f"{role} {name or socket.gethostname()} (pid {os.getpid()})"


def holders(yard: Yard) -> list[Holder]:
    """All that were heard of lately, by name. Raises BrokerUnavailable."""
    now_s = yard.now_s()
    found = []
    gone: list[bytes] = []
    for name, text in yard.guard(lambda: yard.redis.hgetall(keys.KEY_HOLDERS)).items():
        told = json.loads(text)
        one = Holder(name=name.decode(), current=told["current"], ids=tuple(told["ids"]),
                     in_use=tuple(told["in_use"]), seen=told["seen"])  # fmt: skip
        if now_s - one.seen > _FORGET_S:
            gone.append(name)
        elif one.alive(now_s):
            found.append(one)
    if gone:
        yard.guard(lambda: yard.redis.hdel(keys.KEY_HOLDERS, *gone))
    return sorted(found, key=lambda one: one.name)


def wanted(yard: Yard) -> str | None:
    """The id of the key that a rotation makes the current one; None: there is none going on."""
    found: bytes | None = yard.guard(lambda: yard.redis.hget(keys.KEY_STATE, "rotating"))
    return None if found is None else found.decode()


class KeyWatch:
    """Use one in each process that seals. source: None where the process lives shortly, and keeps what it has."""

    def __init__(
        self,
        yard: Yard,
        ring: KeyRing,
        source: KeySource | None,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._yard, self._ring, self._source, self._name, self._clock = yard, ring, source, name, clock
        self._stamp: object = ""  # so that the first look misses no change since the ring was loaded
        self._loaded_at = clock()
        self._complained = self._retired = ""
        self._stop = threading.Event()

    def look(self) -> None:
        """Once: takes other keys if there are some, and tells the yard. Raises BrokerUnavailable."""
        self._follow()
        current = self._ring.current
        if self._is_retired():
            if self._retired != current:
                log.error("key %s, under which this process seals, was retired: it seals nothing more", current)
            self._retired = current
            self._ring.retire(current)
        elif self._retired == current:  # somebody has added it again
            self._retired = ""
            self._ring.retire("")
        told = Holder(name="", current=self._ring.current, ids=self._ring.ids, in_use=tuple(sorted(self._ring.in_use)),
                      seen=self._yard.now_s())  # fmt: skip
        self._yard.guard(lambda: self._yard.redis.hset(keys.KEY_HOLDERS, self._name, json.dumps(asdict(told))))

    def leave(self) -> None:
        """The process has no keys any more. Raises BrokerUnavailable."""
        self._yard.guard(lambda: self._yard.redis.hdel(keys.KEY_HOLDERS, self._name))

    def run(self) -> None:
        """Until `stop`."""
        while True:
            try:
                self.look()
            except BrokerUnavailable:
                pass  # others say so, and often enough
            except Exception:
                log.exception("the keys could not be looked at")
            if self._stop.wait(EVERY_S):
                return

    def stop(self) -> None:
        self._stop.set()

    def _follow(self) -> None:
        if self._source is None:
            return
        stamp = self._source.stamp
        if stamp is None and not self._worth_asking():
            return
        if stamp is not None and stamp == self._stamp:
            return
        self._loaded_at = self._clock()
        try:
            self._ring.renew(self._source.load())
        except BatchyardError as error:
            if str(error) != self._complained:  # again at the next look: it may be in the middle of a copy
                log.warning("the keys stay as they were: %s", error)
            self._complained = str(error)
            return
        self._stamp, self._complained = stamp, ""
        log.info("keys %s from %s; the current one is %s", ", ".join(self._ring.ids), self._source, self._ring.current)

    def _worth_asking(self) -> bool:
        """A source that cannot tell whether it changed is asked while a rotation wants what is not here; and when that
        is over, and this process was away all the while.
        """
        if self._clock() - self._loaded_at < _RELOAD_S:
            return False
        return wanted(self._yard) not in (None, self._ring.current) or self._is_retired()

    def _is_retired(self) -> bool:
        return bool(self._yard.guard(lambda: self._yard.redis.hexists(keys.KEY_STATE, f"retired:{self._ring.current}")))


@contextmanager
def watching(yard: Yard, ring: KeyRing, source: KeySource | None, name: str) -> Iterator[KeyWatch]:
    """A watch in a thread of its own, as long as the context; the yard knows of the process when it is entered, if
    Redis answers.
    """
    watch = KeyWatch(yard, ring, source, name)
    with suppress(BrokerUnavailable):
        watch.look()
    thread = threading.Thread(target=watch.run, name="keys", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join(1.0)
        with suppress(BrokerUnavailable):
            watch.leave()
