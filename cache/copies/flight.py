"""A fetch that several wait for, and what each of them hears of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeAlias

from batchyard.broker.errors import InputError

OnMoved: TypeAlias = Callable[[int, int], None]
"""Hears, on the thread that fetches, how many bytes are done and of how many (0: nobody knows). Must not block."""
Stopped: TypeAlias = Callable[[], bool]
"""Whether who wanted it does not want it any more."""
_LOOK_S = 0.5


class Unwanted(InputError):
    """Nobody wants it any more."""

    def __init__(self, said: str = "it was not fetched: the job was told to stop") -> None:
        super().__init__(said)


class Flight:
    """One fetch. Who makes it tells how far it is, and lands it once; who joins it hears so. It ends early, by Unwanted
    where it is told of, when all who have joined it are stopped.
    """

    def __init__(self) -> None:
        self._over: Future[None] = Future()
        self._lock = threading.Lock()
        self._ears: list[OnMoved] = []
        self._stops: list[Stopped] = []
        self._done = self._total = 0

    def join(self, on_moved: OnMoved | None, stopped: Stopped = lambda: False) -> None:
        with self._lock:
            self._stops.append(stopped)
            if on_moved is not None:
                self._ears.append(on_moved)

    def is_unwanted(self) -> bool:
        with self._lock:
            stops = tuple(self._stops)
        return bool(stops) and all(stopped() for stopped in stops)

    def go_on(self) -> None:
        """Raises Unwanted."""
        if self.is_unwanted():
            raise Unwanted

    def expect(self, total: int) -> None:
        """So many bytes in all, of which none is done: also said again by who begins anew. Unwanted."""
        self.at(0, total)
        self.go_on()

    def more(self, count: int) -> None:
        """Unwanted."""
        with self._lock:
            self._done += count
        self._tell()
        self.go_on()

    def at(self, done: int, total: int) -> None:
        """As another fetch, which this one waits for, says it."""
        with self._lock:
            self._done, self._total = done, total
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            done, total, ears = self._done, self._total, tuple(self._ears)
        for ear in ears:
            ear(done, total)

    def land(self, error: BaseException | None = None) -> None:
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

    def wait(self, stopped: Stopped = lambda: False) -> None:
        """Until it has landed. Raises the error that it landed with; Unwanted: who waits is stopped."""
        while not wait([self._over], _LOOK_S).done:
            if stopped():
                raise Unwanted
        self._over.result()
