"""What goes wrong under a process that works: its disk is full or fails, or it dies, at the nth step that it takes.

A step is a call that changes a disk, a change of the index, or a request to a bucket; all threads take them.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Self
from unittest import mock

import urllib3

from batchyard.cache.index import Index
from batchyard.cache.stores.s3call import Calls

Kind = Literal["none", "full", "broken", "died", "killed"]
_WRITES = ("write", "pwrite")
_CHANGES = ("open", *_WRITES, "rename", "replace", "link", "symlink", "unlink", "rmdir", "mkdir", "chmod", "fchmod",
            "fsync")  # fmt: skip
_TAKES_ROOM = {"open", *_WRITES, "link", "symlink", "mkdir", "fsync"}
_JOIN_S = 10.0


class Killed(BaseException):
    """The process ends here, as far as what it does from now on goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """At step `at`, from 0: `full` and `broken` (ENOSPC, EIO) go on for `lasts` steps; of `died`, all further steps
    raise Killed; `killed` is SIGKILL. A write that it meets has written half.
    """

    kind: Kind = "none"
    at: int = 0
    lasts: int = 1


class Steps:
    """Under a strike, in this process, for the length of a block. taken: steps so far."""

    def __init__(self, strike: Strike) -> None:
        self._strike = strike
        self._guard = threading.Lock()
        self._stack = ExitStack()
        self.taken = 0

    def __enter__(self) -> Self:
        if self._strike.kind == "none":
            return self
        enter = self._stack.enter_context
        enter(mock.patch.object(threading, "excepthook"))
        for name in _CHANGES:
            enter(mock.patch.object(os, name, self._stepping(name, getattr(os, name))))
        enter(mock.patch.object(Index, "_write", self._stepping("index", Index._write)))
        enter(mock.patch.object(Calls, "_once", self._stepping("request", Calls._once)))
        return self

    def __exit__(self, *_: object) -> None:
        """What other threads still do belongs to it."""
        for thread in threading.enumerate():
            if thread.name == "fill":
                thread.join(_JOIN_S)
                assert not thread.is_alive(), "a fill of the near store does not end"
        self._stack.close()

    def _stepping(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **more: Any) -> Any:
            if not _is_step(name, args):
                return real(*args, **more)
            with self._guard:
                number, self.taken = self.taken, self.taken + 1
            if number < self._strike.at:
                return real(*args, **more)
            return self._struck(name, number == self._strike.at, number, lambda: real(*args, **more), real, args)

        return act

    def _struck(
        self, name: str, first: bool, number: int, whole: Callable[[], Any], real: Callable[..., Any], args: Any
    ) -> Any:
        kind = self._strike.kind
        if kind in ("died", "killed"):
            if first and name in _WRITES:
                _half(real, *args)
            if first and name == "request" and number % 2:
                whole()  # it is done, and nobody hears of it
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed
        if number >= self._strike.at + self._strike.lasts or name == "index":
            return whole()
        if name == "request" and kind == "broken":
            raise urllib3.exceptions.ProtocolError("struck")
        if name == "request" or (kind == "full" and name not in _TAKES_ROOM):
            return whole()
        if first and name in _WRITES and len(args[1]) > 1:
            return _half(real, *args)
        raise OSError(errno.ENOSPC if kind == "full" else errno.EIO, "struck")


def _half(real: Callable[..., Any], fd: int, data: Any, *at: int) -> Any:
    """What a write has done that was cut short."""
    return real(fd, data[: len(data) // 2], *at)


def _is_step(name: str, args: Any) -> bool:
    if name == "open":
        return bool(len(args) > 1 and args[1] & os.O_CREAT)
    if name == "mkdir":
        return not os.path.isdir(args[0])
    return True
