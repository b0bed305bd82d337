"""The controller: intake, reaping, what time brings, the outbox. A small process that may be restarted or run twice.

All of its moves may be made by several processes at once; the lock only saves work. A node stands in while no
controller is alive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import redis
from redis.lock import Lock

from . import heads, keys
from .config import Config
from .ending import Outbox
from .errors import BatchyardError, BrokerUnavailable
from .followups import Followups
from .gangs import Gangs, Wait
from .heads import Heads
from .intake import Intake
from .queues import Removals
from .store import Yard
from .timetable import LOOK_S, Timetable

log = logging.getLogger(__name__)
LOCK_S = 5.0
PLACE_S = 0.1
TICK = 64  # moves of a kind in one tick


class Duties:
    """One round of everything that has to be done when nobody asks for it."""

    def __init__(self, yard: Yard, config: Callable[[], Config], followups: Followups) -> None:
        self._yard, self._config, self._intake = yard, config, Intake(yard)
        self._outbox = Outbox(yard, followups, retention_s=config().retention_s)
        self._timetable = Timetable(yard)
        self._gangs, self._removals, self._heads = Gangs(yard), Removals(yard), Heads(yard)
        self._next_place = self._next_tick = self._next_look = self._next_heads = 0.0
        self._gangs_wait = False

    def round(self) -> bool:
        """True when there may be more to do at once. Raises BrokerUnavailable."""
        config, busy = self._config(), False
        for what, act in (
            ("schedules", self._keep_schedules),
            ("intake", self._take_in),
            ("queues", self._of_queues),
            ("what time brings", self._tick),
            ("jobs of several nodes", self._place),
        ):
            busy = self._do(what, act, config) or busy
        return self._outbox.run() > 0 or busy

    def _do(self, what: str, act: Callable[[Config], bool], config: Config) -> bool:
        """Whatever is wrong with one of them must not stop the rest. A Redis that is out of memory refuses new jobs;
        what runs must go on all the same.
        """
        try:
            return act(config)
        except BrokerUnavailable as error:
            if act not in (self._keep_schedules, self._take_in):
                raise
            log.warning("%s: waits: %s", what, error)
        except Exception:
            log.exception("%s: goes on after an error", what)
        return False

    def _tick(self, config: Config) -> bool:
        if time.monotonic() < self._next_tick:
            return False
        moved = self._yard.tick(config.by_priority(), lease_s=config.lease_s, limit=TICK)
        if any(n >= TICK for n in moved):
            return True  # and tick again at once
        self._next_tick = time.monotonic() + min(0.5, config.lease_s / 10)
        return False

    def _place(self, config: Config) -> bool:
        """Gangs that wait, not more often than PLACE_S while none can be placed: each look goes over all nodes."""
        if time.monotonic() < self._next_place:
            return False
        wait, _ = self._gangs.place(
            config.by_priority(), lease_s=config.lease_s, reserve_after_s=config.reserve_after_s
        )
        self._gangs_wait = wait is Wait.ROOM
        self._next_place = time.monotonic() + PLACE_S if self._gangs_wait else 0.0
        return wait is Wait.AGAIN

    def idle_s(self) -> float:
        """How long there is nothing to do by the clock, as far as it is known."""
        soonest = min(self._next_look, self._next_place) if self._gangs_wait else self._next_look
        return max(0.0, soonest - time.monotonic())

    def _of_queues(self, config: Config) -> bool:
        if time.monotonic() >= self._next_heads:
            self._next_heads = time.monotonic() + heads.LOOK_S
            self._heads.look(config)
        return self._removals.round(config)

    def _keep_schedules(self, config: Config) -> bool:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_S
            self._next_look = time.monotonic() + self._timetable.round(config)
        return False

    def _take_in(self, config: Config) -> bool:
        return self._intake.run(config) > 0


class Ear:
    """Wakes when a producer pushes or a function calls for the controller."""

    def __init__(self, yard: Yard, queues: Sequence[str]) -> None:
        database = yard.redis.connection_pool.connection_kwargs.get("db", 0)
        yard.announce_lists()
        self._pubsub = yard.pubsub()
        self._pubsub.subscribe(keys.DUTY)
        self._prefix, self._queues = f"__keyspace@{database}__:", set[str]()
        self.follow(queues)

    def follow(self, queues: Sequence[str]) -> None:
        """Hears producers of these queues too. Raises redis errors."""
        new = [queue for queue in queues if queue not in self._queues]
        lists = [pattern for q in new for pattern in (q, f"{q}{keys.PRIORITY_SEPARATOR}*")]
        if lists:
            self._pubsub.psubscribe(*(f"{self._prefix}{pattern}" for pattern in lists))
        self._queues.update(new)

    def wait(self, timeout_s: float) -> None:
        """Until there is a call or the time is over. Raises redis errors."""
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            heard = self._pubsub.get_message(timeout=left)
            if heard and heard["data"] not in (b"lrem", b"expire", b"del"):
                return

    def close(self) -> None:
        with suppress(redis.RedisError, OSError):
            self._pubsub.close()


class Controller:
    """Runs the duties until told to stop. stand_in: a node's thread, which works only while no controller does."""

    def __init__(
        self, yard: Yard, config: Callable[[], Config], followups: Followups, *, stand_in: bool = False
    ) -> None:
        self._yard, self._config, self._followups, self._stand_in = yard, config, followups, stand_in
        self._stop = threading.Event()
        self.working = threading.Event()

    def stop(self) -> None:
        """May be called twice."""
        self._stop.set()

    def run(self) -> None:
        """Returns after stop(). A Redis that is away is waited for."""
        while not self._stop.is_set():
            try:
                self._session()
            except (BrokerUnavailable, redis.ConnectionError, redis.TimeoutError) as error:
                log.warning("controller waits for Redis: %s", error)
            except Exception:
                log.exception("controller goes on after an error")
            self.working.clear()
            self._stop.wait(0.3)

    def _session(self) -> None:
        lock = Lock(
            self._yard.redis, keys.STAND_IN if self._stand_in else keys.CONTROLLER, timeout=LOCK_S, thread_local=False
        )
        while not (self._wanted() and lock.acquire(blocking=False)):
            if self._stop.wait(1.0):
                return
        config = self._config()
        duties, ear = Duties(self._yard, self._config, self._followups), Ear(self._yard, config.by_priority())
        self.working.set()
        renewed = time.monotonic()
        try:
            while not self._stop.is_set() and self._wanted():
                ear.follow(self._config().by_priority())
                if not duties.round():
                    ear.wait(min(0.5, config.lease_s / 10, duties.idle_s()))
                if time.monotonic() - renewed > LOCK_S / 3:
                    lock.reacquire()
                    renewed = time.monotonic()
        finally:
            ear.close()
            with suppress(redis.RedisError, BatchyardError):
                lock.release()

    def _wanted(self) -> bool:
        return not (self._stand_in and self._yard.redis.exists(keys.CONTROLLER))
