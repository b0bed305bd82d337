"""A fetch that several wait for, and what each of them hears of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeAlias

OnMoved: TypeAlias = Callable[[int, int], None]
"""Hears, on the thread that fetches, how many bytes are done and of how many (0: nobody knows). Must not block."""


class Flight:
    """One fetch. Who makes it tells how far it is, and lands it once; who joins it hears so."""

    def __init__(self) -> None:
        self._over: Future[None] = Future()
        self._lock = threading.Lock()
        self._ears: list[OnMoved] = []
        self._done = self._total = 0

    def join(self, on_moved: OnMoved | None) -> None:
        if on_moved is not None:
            with self._lock:
                self._ears.append(on_moved)

    def expect(self, total: int) -> None:
        """So many bytes in all, of which none is done: also said again by who begins anew."""
        with self._lock:
            self._done, self._total = 0, total
        self.more(0)

    def more(self, count: int) -> None:
        with self._lock:
            self._done += count
            done, total, ears = self._done, self._total, tuple(self._ears)
        for ear in ears:
            ear(done, total)

    def at(self, done: int, total: int) -> None:
        """As another fetch, which this one waits for, says it."""
        with self._lock:
            self._done, self._total = done, total
        self.more(0)

    def land(self, error: BaseException | None = None) -> None:
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

    def wait(self) -> None:
        """Until it has landed. Raises the error that it landed with."""
        self._over.result()
