"""Threads that run jobs: made when needed, used again, and no obstacle to a process that ends.

An executor of the standard library joins its threads at exit; a job's thread may be waiting for Redis just then.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Slots:
    """At most `most` jobs at once."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = self._busy = 0

    def free(self) -> int:
        with self._lock:
            return self._most - self._busy

    def run(self, act: Callable[[], None]) -> None:
        """Runs it on a thread; `act` must not raise. RuntimeError: the system has no thread for it."""
        with self._lock:
            if self._busy >= self._threads:
                threading.Thread(target=self._loop, name=f"slot-{self._threads + 1}", daemon=True).start()
                self._threads += 1
            self._busy += 1
        self._work.put(act)

    def _loop(self) -> None:
        while True:
            act = self._work.get()
            try:
                act()
            finally:
                with self._lock:
                    self._busy -= 1
