"""What a node does beside its jobs: it makes room ahead, looks at its copies again, and takes its turn at deleting from
the durable store what nobody needs any more.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from batchyard.broker.config import Config
from batchyard.broker.errors import BatchyardError
from batchyard.broker.expiry import Expiry
from batchyard.broker.store import Yard
from batchyard.cache.collect import Busy, Collector
from batchyard.cache.copies.scrub import Pace

from .levels import Levels

log = logging.getLogger(__name__)
LOOK_S = 60.0  # between two looks whether something has expired
AGAIN_S = 15.0  # when another one deletes, or something is away
REST_S = 3600.0  # from the end of a scrub to the next one
_NICE = 10


class Roomy(Protocol):
    """A level with a soft limit."""

    crowded: threading.Event

    def tidy(self) -> None: ...


class Upkeep:
    """start() once; its threads end with the process, or after close()."""

    def __init__(self, yard: Yard, levels: Levels, config: Callable[[], Config], scrub_mib_s: float) -> None:
        self._yard, self._levels, self._config = yard, levels, config
        self._closing = threading.Event()
        self._expiry = Expiry(yard)
        self._collector = Collector(yard, levels.blobs, self._tenants)
        self._scrub_mib_s = scrub_mib_s

    def start(self) -> None:
        rooms: list[Roomy] = [self._levels.copies.held, *([self._levels.bounded] if self._levels.bounded else [])]
        acts: list[Callable[[], None]] = [partial(self._make_room, room) for room in rooms]
        acts += [self._collect, *([self._scrub] if self._scrub_mib_s > 0 else [])]
        for act in acts:
            threading.Thread(target=act, name="upkeep", daemon=True).start()

    def close(self) -> None:
        """May be called twice."""
        self._closing.set()

    def _tenants(self) -> dict[str, str]:
        return {name: queue.tenant for name, queue in self._config().queues.items()}

    def _make_room(self, room: Roomy) -> None:
        while not self._closing.is_set():
            room.crowded.wait()
            self._well(room.tidy, "room could not be made ahead")

    def _scrub(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # on Linux, of this thread alone
        pace = Pace(self._scrub_mib_s * 2**20, self._closing.wait)

        def step() -> float:
            return 0.0 if self._levels.scrub.step(self._tenants().values(), pace.spend) else REST_S

        while not self._closing.wait(self._well(step, "copies are not looked at again now") or 0.0):
            pass

    def _collect(self) -> None:
        while not self._closing.wait(self._well(self.collect, "nothing is deleted now") or AGAIN_S):
            pass

    def collect(self) -> float:
        """Deletes what is due, if anything; seconds until the next look."""
        due_s = self._expiry.wait_s()
        if due_s is None or due_s > 0:
            return min(LOOK_S, LOOK_S if due_s is None else due_s + 0.1)
        try:
            freed = self._collector.round()
        except Busy:
            return AGAIN_S
        if freed.objects:
            log.info("%d objects that expired are deleted, %d bytes", freed.objects, freed.bytes)
        return 1.0

    def _well(self, act: Callable[[], float | None], what: str) -> float | None:
        """What is wrong stops no thread of these."""
        try:
            return act()
        except BatchyardError as error:
            log.warning("%s: %s", what, error)
        except Exception:
            log.exception("%s", what)
        self._closing.wait(1.0)
        return None
