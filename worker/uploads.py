"""Attempts whose containers have ended, and whose outputs are not durable yet: who may upload, and when it is enough.

Their vCPUs, memory and GPUs are others' already, and their disk is still booked. So one that waits here costs a thread
(some 100 KiB), its lease, and what it has on the disk.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FREE_BYTES = 1 << 20
"""As little is sent at once, in no line: most logs. 128 of them at one moment take 384 MiB at most, in three copies."""
SMALL_BYTES = 64 << 20
"""As little does not wait behind what takes an hour: it has a line of its own."""


class Line:
    """The rules, without threads. at_once: how many of the large, and again of the small, are sent side by side.

    most: with so many attempts here no more jobs are to be taken, nor with more than most_bytes of outputs.
    """

    def __init__(self, *, at_once: int, most: int, most_bytes: int) -> None:
        self._at_once, self._most, self._most_bytes = at_once, most, most_bytes
        self._here: set[str] = set()
        self._lines: tuple[dict[str, int], dict[str, int]] = ({}, {})

    @property
    def count(self) -> int:
        """Attempts that are here."""
        return len(self._here)

    @property
    def bytes(self) -> int:
        """What is being sent or waits for that."""
        return sum(sum(line.values()) for line in self._lines)

    @property
    def full(self) -> bool:
        return self.count >= self._most or self.bytes > self._most_bytes

    def enter(self, name: str) -> None:
        """Its container has ended. May be called twice."""
        self._here.add(name)

    def leave(self, name: str) -> None:
        """It is settled, and its folder is gone. May be called twice, and of one that is not here."""
        self.done(name)
        self._here.discard(name)

    def queue(self, name: str, weight: int) -> None:
        """It has something to send. Those that came before it in its line come first."""
        if weight > FREE_BYTES:
            self._lines[weight > SMALL_BYTES].setdefault(name, weight)

    def done(self, name: str) -> None:
        """It sends no more."""
        for line in self._lines:
            line.pop(name, None)

    def ahead(self, name: str) -> int:
        """How many have to be done before it may send; 0: now."""
        for line in self._lines:
            if name in line:
                return max(0, list(line).index(name) - self._at_once + 1)
        return 0


class Uploads:
    """A `Line` for threads, and when the store that all of them need went away."""

    def __init__(
        self,
        *,
        at_once: int = 4,
        most: int = 64,
        most_bytes: int = 2**63,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._line = Line(at_once=at_once, most=most, most_bytes=most_bytes)
        self._changed = threading.Condition()
        self._clock = clock
        self._away_since: float | None = None
        self._on_turn: Callable[[], None] = lambda: None

    def follow(self, on_turn: Callable[[], None]) -> None:
        """Calls this, on any thread, when it becomes full and when there is room again. It must not block."""
        self._on_turn = on_turn

    @property
    def count(self) -> int:
        with self._changed:
            return self._line.count

    @property
    def full(self) -> bool:
        """No more jobs are to be taken."""
        with self._changed:
            return self._line.full

    def enter(self, name: str) -> None:
        with self._change():
            self._line.enter(name)

    def leave(self, name: str) -> None:
        with self._change():
            self._line.leave(name)

    def look(self) -> None:
        """Those that wait are to see whether they were stopped."""
        with self._changed:
            self._changed.notify_all()

    @contextmanager
    def turn(
        self, name: str, weight: int, *, stopped: Callable[[], bool], waits: Callable[[int], None]
    ) -> Iterator[None]:
        """Waits until it may send, or until `stopped`, and lets the next one send afterwards.

        weight: bytes. waits: told how many are to be done before, at first and when that changes.
        """
        with self._change():
            self._line.queue(name, weight)
        try:
            self._wait(name, stopped, waits)
            yield
        finally:
            with self._change():
                self._line.done(name)

    def _wait(self, name: str, stopped: Callable[[], bool], waits: Callable[[int], None]) -> None:
        told = ahead = -1
        while ahead != 0 and not stopped():
            with self._changed:
                while (ahead := self._line.ahead(name)) == told and not stopped():
                    self._changed.wait()
            if ahead:
                waits(ahead)
            told = ahead

    @contextmanager
    def _change(self) -> Iterator[None]:
        with self._changed:
            before = self._line.full
            yield
            turned = before != self._line.full
            self._changed.notify_all()
        if turned:
            self._on_turn()

    # -- the store
    def refused(self, since: float) -> float:
        """The store did not take something. From when on that counts for an attempt whose container ended at `since`,
        by the clock: others may have found the store away before, while it waited for its turn.
        """
        with self._changed:
            if self._away_since is None:
                self._away_since = self._clock()
            return max(self._away_since, since)

    def taken(self) -> None:
        """The store has taken something: it is there."""
        with self._changed:
            self._away_since = None
