"""sha256 of a stream, computed beside the thread that moves its bytes."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

AHEAD = 3
"""Pieces that may be on their way at once."""
_SIDE_BYTES = 1 << 18  # less is hashed sooner than handed over


class SideHash:
    """sha256 of a stream, in another thread while this one moves bytes. A piece that `update` is given must stay as it
    is until `AHEAD` more were given.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._waiting: deque[memoryview] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._ticket = 0  # taken by the one that works: a task that a pool kept after it had raised is void

    def update(self, piece: memoryview) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) + self._busy < AHEAD)
            idle = not self._busy
            if idle and len(piece) < _SIDE_BYTES:
                self._hash.update(piece)
                return
            self._waiting.append(piece)
            self._busy = True
            ticket = self._ticket
        if idle:
            try:
                _hashers().submit(self._work, ticket)
            except RuntimeError:  # the interpreter ends, or there is no thread more
                self._work(ticket)

    def _work(self, ticket: int) -> None:
        """While anything waits, unless another does."""
        with self._changed:
            if ticket != self._ticket:
                return
            self._ticket += 1
        while True:
            with self._changed:
                if not self._waiting:
                    self._busy = False
                    self._changed.notify()
                    return
                piece = self._waiting.popleft()
            self._hash.update(piece)
            with self._changed:
                self._changed.notify()

    def hexdigest(self) -> str:
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            return self._hash.hexdigest()


@functools.cache
def _hashers() -> ThreadPoolExecutor:
    """Shared by all streams: a task is a millisecond's work, so nothing waits long for the threads to end."""
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="hash")


os.register_at_fork(after_in_child=_hashers.cache_clear)  # threads do not survive a fork
