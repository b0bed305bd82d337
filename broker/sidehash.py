"""sha256 of a stream, computed beside the thread that moves its bytes; and what else is to be done with each piece."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

AHEAD = 3
_SIDE_BYTES = 1 << 18  # less is hashed sooner than handed over
_MOST_THREADS = 32  # more than there are cores: a sink may wait for a disk
Sink: TypeAlias = Callable[[memoryview], None]


class SideHash:
    """sha256 of a stream, in another thread while this one moves bytes. `ahead`: pieces that may be on the way at once.
    A piece that `update` is given must stay as it is until `ahead` more were given, or `on_the_way` tells.
    """

    def __init__(self) -> None:
        self.ahead = AHEAD
        self._hash = hashlib.sha256()
        self._waiting: deque[tuple[memoryview, Sink | None]] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._failure: BaseException | None = None
        self._ticket = 0  # taken by the one that works: a task that a pool kept after it had raised is void

    def update(self, piece: memoryview, sink: Sink | None = None) -> None:
        """sink: gets the piece when it is hashed. What a sink raised for an earlier piece is raised here."""
        with self._changed:
            self._changed.wait_for(lambda: self.on_the_way < self.ahead)
            self._check()
            idle = not self._busy
            if idle and len(piece) < _SIDE_BYTES:
                self._take(piece, sink)
                return
            self._waiting.append((piece, sink))
            self._busy = True
            ticket = self._ticket
        if idle:
            try:
                _hashers().submit(self._work, ticket)
            except RuntimeError:  # the interpreter ends, or there is no thread more
                self._work(ticket)

    @property
    def on_the_way(self) -> int:
        """At most so many of the last pieces are still needed."""
        return len(self._waiting) + self._busy

    def _take(self, piece: memoryview, sink: Sink | None) -> None:
        self._hash.update(piece)
        if sink is not None:
            sink(piece)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self, ticket: int) -> None:
        """While anything waits, unless another does."""
        with self._changed:
            if ticket != self._ticket:
                return
            self._ticket += 1
        while True:
            with self._changed:
                self._busy = bool(self._waiting)
                self._changed.notify_all()
                if not self._busy:
                    return
                piece, sink = self._waiting.popleft()
            try:
                self._take(piece, sink)
            except BaseException as error:  # for the thread that moves the bytes
                with self._changed:
                    self._failure = error
                    self._waiting.clear()

    def hexdigest(self) -> str:
        """Of all pieces, which the sinks have got as well. Raises what a sink raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)
            self._check()
            return self._hash.hexdigest()

    def rest(self) -> None:
        """Forget what waits; no sink is at work, and none will be, when this returns."""
        with self._changed:
            self._waiting.clear()
            self._changed.wait_for(lambda: not self._busy)


@functools.cache
def _hashers() -> ThreadPoolExecutor:
    """Shared by all streams."""
    return ThreadPoolExecutor(max_workers=_MOST_THREADS, thread_name_prefix="hash")


os.register_at_fork(after_in_child=_hashers.cache_clear)  # threads do not survive a fork
