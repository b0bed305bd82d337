"""Something done in a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_FORK = multiprocessing.get_context("fork")


def apart(act: Callable[[], T]) -> T:
    """What `act` returns, called in a process of its own: Celery's result objects keep connections for as long as they
    live, and break their process when Redis is killed."""
    ours, theirs = _FORK.Pipe(duplex=False)

    def call() -> None:
        try:
            theirs.send((act(), None))
        except Exception as error:
            theirs.send((None, repr(error)))

    process = _FORK.Process(target=call, daemon=True)
    process.start()
    value: T
    value, error = ours.recv()
    process.join()
    assert error is None, error
    return value
