"""Waiting for something to become true, up to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, *, timeout_s: float = 10.0, every_s: float = 0.02) -> T:
    """The first true value of `condition()`; `AssertionError("… did not happen: {what}")` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"within {timeout_s:g} s this did not happen: {what}")
        time.sleep(every_s)
    return value
