"""A log of bounded size on disk: its head, a line that says what was left out, its tail.

While it grows there are `log` (the head) and at most two `tail.N` files of `tail_bytes` each. The state is a small
record that the owner keeps; what was written after the last kept state is cut off on restore.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Sizes in bytes. `tail` numbers the tail file being written, 0 for none yet."""

    head: int = 0
    head_lines: int = 0
    head_full: bool = False
    tail: int = 0
    tail_size: int = 0
    bytes: int = 0
    lines: int = 0
    finished: bool = False


class BoundedLog:
    """Append whole lines; disk use stays under `head_bytes` + 2 × (`tail_bytes` + one append)."""

    def __init__(self, folder: Path, *, head_bytes: int, tail_bytes: int, state: State | None = None) -> None:
        self._folder, self._head_bytes, self._tail_bytes = folder, head_bytes, tail_bytes
        self.state = state or State()
        self._file: BinaryIO | None = None
        if not self.state.finished:
            self._cut_back()

    @property
    def path(self) -> Path:
        return self._folder / "log"

    def append(self, chunk: bytes, lines: int) -> None:
        """Write whole lines. The caller keeps `state` afterwards, then calls `forget`.

        OSError: nothing was appended.
        """
        before = self.state
        try:
            self._append(chunk, lines)
        except OSError:
            self.state = before
            self._close()
            self._cut_back()
            raise

    def _append(self, chunk: bytes, lines: int) -> None:
        now = self.state
        self.state = replace(now, bytes=now.bytes + len(chunk), lines=now.lines + lines)
        if not now.head_full:
            room = self._head_bytes - now.head
            fits = len(chunk) if len(chunk) <= room else chunk.rfind(b"\n", 0, max(room, 0)) + 1
            counted = lines if fits == len(chunk) else chunk.count(b"\n", 0, fits)
            self._write(chunk[:fits])
            self.state = replace(
                self.state, head=now.head + fits, head_lines=now.head_lines + counted, head_full=fits < len(chunk)
            )
            chunk = chunk[fits:]
        if chunk:
            self._append_tail(chunk)

    def _append_tail(self, chunk: bytes) -> None:
        now = self.state
        if now.tail == 0 or now.tail_size >= self._tail_bytes:
            self._close()
            now = replace(now, tail=now.tail + 1, tail_size=0)
        self.state = replace(now, tail_size=now.tail_size + len(chunk))
        self._write(chunk)

    def forget(self) -> None:
        """Drop tail files that are no longer needed. Only after the state was kept."""
        if self.state.finished:
            for path in self._folder.glob("tail.*"):
                path.unlink(missing_ok=True)
        elif self.state.tail > 2:
            self._tail(self.state.tail - 2).unlink(missing_ok=True)

    def finish(self) -> None:
        """Put the tail behind the head, with a marker between when lines were left out. Then keep the state."""
        if self.state.finished:
            return
        self._close()
        self._cut_back()
        now = self.state
        data = b"".join(path.read_bytes() for path in self._tails())
        if len(data) > self._tail_bytes:
            data = data[len(data) - self._tail_bytes - 1 :]
            data = data[data.find(b"\n") + 1 :]
        left_out = now.bytes - now.head - len(data)
        if left_out:
            lines = now.lines - now.head_lines - data.count(b"\n")
            stamp = data[: data.find(b" ")] or b"-"
            text = f"{lines} lines ({left_out} bytes) are left out here: a log keeps its first and last part"
            data = b"%b platform %b\n%b" % (stamp, text.encode(), data)
        if data:
            with self.path.open("ab") as log:
                log.write(data)
        else:
            self.path.touch()
        self.state = replace(now, finished=True)

    def last(self, count: int) -> bytes:
        """The last `count` bytes at most, from a line's start on."""
        parts: list[bytes] = []
        want = count + 1
        for path in (*reversed(list(self._tails())), self.path):
            if want <= 0 or not path.exists():
                continue
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - want))
                parts.append(file.read(want))
            want -= len(parts[-1])
        data = b"".join(reversed(parts))
        return data if len(data) <= count else data[data.find(b"\n") + 1 :]

    def close(self) -> None:
        """Let go of the open file; a later append opens it again."""
        self._close()

    def _tails(self) -> Iterator[Path]:
        if not self.state.finished:
            for number in (self.state.tail - 1, self.state.tail):
                if number > 0:
                    yield self._tail(number)

    def _tail(self, number: int) -> Path:
        return self._folder / f"tail.{number}"

    def _write(self, data: bytes) -> None:
        if self._file is None:
            path = self._tail(self.state.tail) if self.state.tail else self.path
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - kept open between appends
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _cut_back(self) -> None:
        """Make the files what the state says."""
        keep = {path.name: path for path in self._tails()}
        for path in self._folder.glob("tail.*"):
            if path.name not in keep:
                path.unlink(missing_ok=True)
        for path, size in ((self.path, self.state.head), (self._tail(self.state.tail), self.state.tail_size)):
            if path.exists() and path.stat().st_size > size:
                os.truncate(path, size)
