"""Where a container's lines are read from: the engine's own log file, or its API when the file is out of reach.

Measured: reading an unrotated json-file by byte offset lost 0 of 300,000 lines at a sixtieth of the API's CPU;
following a rotated file loses lines. So the engine must not rotate, and what was read is freed by punching holes.
"""

from __future__ import annotations

import calendar
import ctypes
import json
import os
import queue
import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import strptime
from typing import Any, Protocol, cast

from batchyard.broker.errors import EngineUnavailable, NotFound

Entry = tuple[bytes, bytes, bytes, bool]
"""(stream `stdout` or `stderr`, time as RFC 3339, text without newline, whether the line ends here)."""

Position = dict[str, Any]
"""JSON: how far a source has been read. Opaque to everybody but the source."""

PUNCH_EVERY_BYTES = 1 << 20
_LINE = re.compile(rb'\{"log":"((?:[^"\\]+|\\.)*+)","stream":"(stdout|stderr)","time":"([^"]+)"\}\n')
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 0x01, 0x02
_PAGE = 4096


class LogSource(Protocol):
    """Lines of one container in order. Used by one thread at a time."""

    @property
    def position(self) -> Position:
        """How far `read` has come."""
        ...

    def restore(self, position: Position) -> None:
        """Go on from a kept position. Call before the first `read`."""

    def read(self, max_bytes: int, *, ended: bool = False) -> list[Entry]:
        """Entries after the position, about `max_bytes` at most; an empty list when there is nothing now.

        Does not wait, unless the container has `ended`: then an empty list means that there will be no more.
        """
        ...

    def release(self) -> None:
        """What lies before the position is kept elsewhere: the source may free it."""

    def close(self) -> None:
        """Let go of files and connections. May be called twice."""


class FileLog:
    """Docker's json-file, read by offset from the disk. Needs read access to it; write access frees what was read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._writable = False
        self._offset = 0
        self._freed = 0

    @property
    def position(self) -> Position:
        return {"offset": self._offset}

    def restore(self, position: Position) -> None:
        self._offset = self._freed = int(position["offset"])

    def read(self, max_bytes: int, *, ended: bool = False) -> list[Entry]:
        if self._fd is None and not self._open():
            return []
        while data := os.pread(cast(int, self._fd), max_bytes, self._offset):
            whole = data.rfind(b"\n") + 1
            if whole:
                self._offset += whole
                return entries_of(data[:whole])
            # Half a line, written while we looked; or, when the engine died in the middle of it, never to be whole.
            if not ended and len(data) < max_bytes:
                break
            self._offset += len(data)
            if data.strip(b"\0"):  # else a hole
                return entries_of(data + b"\n")
        return []

    def release(self) -> None:
        if not self._writable or self._fd is None or self._offset - self._freed < PUNCH_EVERY_BYTES:
            return
        start, end = self._freed // _PAGE * _PAGE, self._offset // _PAGE * _PAGE
        self._writable = punch_hole(self._fd, start, end - start)
        self._freed = end

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _open(self) -> bool:
        for flags in (os.O_RDWR, os.O_RDONLY):
            try:
                self._fd = os.open(self._path, flags | os.O_CLOEXEC)
            except FileNotFoundError:
                return False  # the engine makes it when the container starts
            except PermissionError:
                continue
            self._writable = flags == os.O_RDWR
            return True
        return False


def entries_of(data: bytes) -> list[Entry]:
    """Parse whole lines of a json-file. A line that is not of its form comes back as text of `stderr`."""
    found = _LINE.findall(data)
    if len(found) != data.count(b"\n"):
        return [_slow(line) for line in data.split(b"\n") if line.strip(b"\0")]
    entries: list[Entry] = []
    for body, stream, time in found:
        slash = body.find(b"\\")
        if slash < 0:
            entries.append((stream, time, body, False))
        elif slash == len(body) - 2 and body[-1] == 0x6E:  # the only escape is the newline at the end
            entries.append((stream, time, body[:-2], True))
        else:
            text = json.loads(b'"' + body + b'"').encode("utf-8", "surrogatepass")
            entries.append((stream, time, text.removesuffix(b"\n"), text.endswith(b"\n")))
    return entries


def _slow(line: bytes) -> Entry:
    line = line.lstrip(b"\0")  # a hole that we punched, or one that a crash of the host left
    try:
        fields = json.loads(line)
        text = fields["log"].encode("utf-8", "surrogatepass")
        stream = fields["stream"].encode()
        if stream not in (b"stdout", b"stderr"):
            raise ValueError(stream)
        return stream, fields["time"].encode(), text.removesuffix(b"\n"), text.endswith(b"\n")
    except (ValueError, KeyError, TypeError, AttributeError):
        return b"stderr", b"", line, True


def _fallocate() -> Callable[..., int] | None:
    try:
        call = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return cast("Callable[..., int]", call)


_FALLOCATE = _fallocate()


def punch_hole(fd: int, start: int, length: int) -> bool:
    """Free a region of an open file and keep its size. False where the system or filesystem cannot."""
    if _FALLOCATE is None:
        return False
    return length <= 0 or _FALLOCATE(fd, _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE, start, length) == 0


class FollowLog:
    """The engine's multiplexed log stream, for an engine whose files are out of reach.

    `connect(since, follow)` opens the stream, with timestamps, and returns a `read(n)`; `since` is epoch seconds
    with nanoseconds, or "" for all. `over` says whether the container ended: an engine that shuts down in order ends
    the stream as if it had. Docker 20.10 ends a followed stream before its last lines, about once in 20 times, so
    those are read once more without following. The position is, per stream, the last time seen and how many entries
    had it, since several lines may share one. A thread of its own reads; it dies with the stream. The engine's side
    buffers on disk, so a slow reader never blocks the job.
    """

    QUEUE_ENTRIES = 4096
    LAST_WORDS_S = 30.0

    def __init__(
        self,
        connect: Callable[[str, bool], Callable[[int], bytes]],
        *,
        over: Callable[[], bool] = lambda: True,
        retry_s: float = 0.25,
    ) -> None:
        self._connect, self._is_over = connect, over
        self._retry_s = retry_s
        self._seen: dict[str, tuple[str, int]] = {}
        self._entries: queue.Queue[Entry | None] = queue.Queue(self.QUEUE_ENTRIES)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._over = False

    @property
    def position(self) -> Position:
        return {"seen": {stream: [time, count] for stream, (time, count) in self._seen.items()}}

    def restore(self, position: Position) -> None:
        self._seen = {stream: (time, count) for stream, (time, count) in position["seen"].items()}

    def read(self, max_bytes: int, *, ended: bool = False) -> list[Entry]:
        if self._thread is None:
            self._thread = threading.Thread(target=self._pump, args=(dict(self._seen),), daemon=True, name="logs")
            self._thread.start()
        taken: list[Entry] = []
        size = 0
        while size < max_bytes and not self._over:
            try:
                entry = self._entries.get(block=ended and not taken, timeout=self.LAST_WORDS_S)
            except queue.Empty:
                break
            if entry is None:
                self._over = True
                break
            stream, time = entry[0].decode(), entry[1].decode()
            last, count = self._seen.get(stream, ("", 0))
            self._seen[stream] = (time, count + 1 if time == last else 1)
            taken.append(entry)
            size += len(entry[2]) + 64
        return taken

    def release(self) -> None:
        pass

    def close(self) -> None:
        self._closed.set()

    def _pump(self, seen: dict[str, tuple[str, int]]) -> None:
        follow = True
        while not self._closed.is_set():
            try:
                for entry in self._after(seen, follow):
                    self._put(entry)
                    if self._closed.is_set():
                        return
                if not follow:
                    break
                follow = not self._is_over()
                if follow:
                    self._closed.wait(self._retry_s)
            except NotFound:
                break
            except (EngineUnavailable, OSError, ValueError):
                self._closed.wait(self._retry_s)
        self._put(None)

    def _put(self, entry: Entry | None) -> None:
        while not self._closed.is_set():
            try:
                return self._entries.put(entry, timeout=0.5)
            except queue.Full:
                continue

    def _after(self, seen: dict[str, tuple[str, int]], follow: bool) -> Iterator[Entry]:
        """Entries that `seen` does not cover; it is kept up to date, so a second call goes on where one broke off."""
        left = dict(seen)
        both = len(seen) == 2  # a stream not seen yet may have lines older than the other's last
        read = self._connect(min(epoch(time) for time, _ in seen.values()) if both else "", follow)
        for stream, payload in frames(read):
            time, _, text = payload.partition(b" ")
            at = time.decode()
            last, count = left.get(stream, ("", 0))
            if last and (epoch(at) < epoch(last)):
                continue
            if at == last and count > 0:
                left[stream] = (last, count - 1)
                continue
            before, same = seen.get(stream, ("", 0))
            seen[stream] = (at, same + 1 if at == before else 1)
            yield stream.encode(), time, text.removesuffix(b"\n"), text.endswith(b"\n")


def frames(read: Callable[[int], bytes]) -> Iterator[tuple[str, bytes]]:
    """Docker's stream framing: 1 byte of stream, 3 of nothing, 4 of length, then the payload. Ends at a clean end."""

    def exactly(count: int) -> bytes:
        got = bytearray()
        while len(got) < count:
            piece = read(count - len(got))
            if not piece:
                break
            got += piece
        return bytes(got)

    while header := exactly(8):
        if len(header) < 8:
            raise ValueError("the log stream broke off")
        stream, length = struct.unpack(">B3xI", header)
        payload = exactly(length)
        if len(payload) < length:
            raise ValueError("the log stream broke off")
        yield "stderr" if stream == 2 else "stdout", payload


def epoch(time: str) -> str:
    """RFC 3339 in UTC as `seconds.nanoseconds`, which the engine's `since` takes and which sorts as text."""
    seconds, _, fraction = time.rstrip("Z").partition(".")
    return f"{calendar.timegm(strptime(seconds, '%Y-%m-%dT%H:%M:%S'))}.{fraction:0<9}"
