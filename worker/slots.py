"""Threads that run jobs: made when needed, used again, and no obstacle to a process that ends.

A job may give its slot to another before its thread is done with it.

An executor of the standard library joins its threads at exit; a job's thread may be waiting for Redis just then.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeAlias


class Slots:
    """At most `most` jobs have one at once."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._work: queue.SimpleQueue[tuple[Act, Slot]] = queue.SimpleQueue()
        self._threads = self._working = self._taken = 0

    def free(self) -> int:
        with self._lock:
            return self._most - self._taken

    def run(self, act: Act) -> None:
        """Runs it on a thread; `act` must not raise. RuntimeError: the system has no thread for it."""
        with self._lock:
            if self._working >= self._threads:
                threading.Thread(target=self._loop, name=f"slot-{self._threads + 1}", daemon=True).start()
                self._threads += 1
            self._working += 1
            self._taken += 1
        self._work.put((act, Slot(self._give_back)))

    def _give_back(self) -> None:
        with self._lock:
            self._taken -= 1

    def _loop(self) -> None:
        while True:
            act, slot = self._work.get()
            try:
                act(slot)
            finally:
                slot.leave()
                with self._lock:
                    self._working -= 1


class Slot:
    """What a job has of `Slots`. For its own thread only."""

    def __init__(self, give_back: Callable[[], None]) -> None:
        self._give_back: Callable[[], None] | None = give_back

    def leave(self) -> None:
        """Another job may have it. May be called twice."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


Act: TypeAlias = Callable[[Slot], None]
