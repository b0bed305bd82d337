"""Bytes on their way into a store while somebody else writes or reads them: best effort, never in the way."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from batchyard.broker.errors import BatchyardError
from batchyard.broker.seal import Readable

from .protocol import Store

log = logging.getLogger(__name__)
_EARLY_BYTES = 4 << 20
"""As much is collected before the store is asked to take it: the size of a smaller object is known by then."""
_AHEAD_BYTES = 8 << 20
_PATIENCE_S, _SHARE = 2.0, 0.1
"""For how long a store that is slow may hold up who writes or reads: so long, and for that part of the time."""


class Places:
    """How many fills may go on at once. After one that waited in vain none waits, until there was a place again."""

    def __init__(self, most: int) -> None:
        self._free, self._in_vain = threading.BoundedSemaphore(most), False

    def take(self) -> bool:
        """Whether there is one; it may take _PATIENCE_S."""
        taken = self._free.acquire(blocking=False)
        if not taken and not self._in_vain:
            taken = self._free.acquire(timeout=_PATIENCE_S)
        self._in_vain = not taken
        return taken

    def leave(self) -> None:
        self._free.release()


class _GivenUp(BatchyardError):
    """The source of a put that nobody wants any more."""


class _Pipe:
    """From one thread to another, not more than _AHEAD_BYTES ahead."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[memoryview] = deque()
        self._waiting, self._ended, self._given_up = 0, False, False
        self._began_s, self._waited_s = time.monotonic(), 0.0

    def write(self, piece: bytes) -> bool:
        """False: the reader is gone, or has held up the writer for too long."""
        with self._changed:
            self._wait_for_reader()
            if not self._given_up:
                self._pieces.append(memoryview(piece))
                self._waiting += len(piece)
            self._changed.notify_all()
            return not self._given_up

    def _wait_for_reader(self) -> None:
        began_s = time.monotonic()
        left_s = _PATIENCE_S + _SHARE * (began_s - self._began_s) - self._waited_s
        if not self._changed.wait_for(lambda: self._waiting < _AHEAD_BYTES or self._given_up, max(0.0, left_s)):
            self._given_up = True
        self._waited_s += time.monotonic() - began_s

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def give_up(self) -> None:
        with self._changed:
            self._given_up = not self._ended
            self._changed.notify_all()

    def readinto(self, buffer: memoryview, /) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended or self._given_up)
            if self._given_up:
                raise _GivenUp("given up")
            if not self._pieces:
                return 0
            piece = self._pieces.popleft()
            count = min(len(piece), len(buffer))
            buffer[:count] = piece[:count]
            if count < len(piece):
                self._pieces.appendleft(piece[count:])
            self._waiting -= count
            self._changed.notify_all()
            return count


class Fill:
    """One object. `give` what is read or written, then `finish` or `abandon`; none of them raises.

    size: in bytes, or how to ask for it. on_error: what the store said when it did not take it. places: shared with
    other fills. Nothing is visible in the store before `finish`, since a put makes nothing before its source
    has ended.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        size: int | Callable[[], int | None],
        *,
        places: Places,
        on_error: Callable[[BatchyardError], None],
        on_end: Callable[[Fill], None],
    ) -> None:
        self._store, self.name, self._size = store, name, size
        self._places, self._on_error, self._on_end = places, on_error, on_end
        self._early: list[bytes] = []
        self._given = 0
        self._pipe: _Pipe | None = None
        self._lock = threading.Lock()
        self._closed = False
        self.ended = threading.Event()
        """nothing will be put any more"""

    @property
    def given_bytes(self) -> int:
        """How much has come so far."""
        return self._given

    def give(self, piece: memoryview) -> None:
        with self._lock:
            if self._closed:
                return
            self._given += len(piece)
            if self._pipe is None and self._given > _EARLY_BYTES and not self._start():
                return
            if self._pipe is None:
                self._early.append(bytes(piece))
            elif not self._pipe.write(bytes(piece)):
                self._close()

    def finish(self) -> None:
        """All was given, and it is what the object is."""
        with self._lock:
            if not self._closed and self._pipe is None:
                self._size = self._given
                self._start()
            if not self._closed and self._pipe is not None:
                self._closed = True
                self._pipe.end()

    def abandon(self) -> None:
        """It may be anything but the object. May be called at any time, by any thread."""
        if (pipe := self._pipe) is not None:
            pipe.give_up()  # `give` may be waiting for it with the lock
        with self._lock:
            if self._pipe is not None:
                self._pipe.give_up()
            self._close()

    def _close(self) -> None:
        self._closed = True
        self._early = []
        if self._pipe is None and not self.ended.is_set():
            self.ended.set()
            self._on_end(self)

    def _start(self) -> bool:
        """The store is asked to take it, on a thread."""
        size = self._asked()
        if size is None or not self._places.take():
            self._close()
            return False
        self._pipe = pipe = _Pipe()
        for piece in self._early:
            pipe.write(piece)
        self._early = []
        try:
            threading.Thread(target=self._put, args=(pipe, size), name="fill", daemon=True).start()
        except RuntimeError:  # no thread more
            self._places.leave()
            self._pipe = None
            self._close()
            return False
        return True

    def _asked(self) -> int | None:
        if isinstance(self._size, int):
            return self._size
        try:
            return self._size()
        except BatchyardError:
            return None

    def _put(self, pipe: _Pipe, size: int) -> None:
        try:
            self._store.put_if_absent(self.name, pipe, size)
        except _GivenUp:
            pass
        except BatchyardError as error:
            self._on_error(error)
        finally:
            pipe.give_up()
            self._places.leave()
            self.ended.set()
            self._on_end(self)


class Tee:
    """A reader that gives what is read to a fill as well. at_end: it was read to its end."""

    def __init__(self, reader: Readable, fill: Fill | None) -> None:
        self._reader, self._fill, self.at_end = reader, fill, False

    def readinto(self, buffer: memoryview, /) -> int:
        count = self._reader.readinto(buffer) or 0
        if count and self._fill is not None:
            self._fill.give(buffer[:count])
        self.at_end = self.at_end or (count == 0 and len(buffer) > 0)
        return count
