"""From a container's lines to the job's log: bounded, masked, in order, and the same after a `kill -9` of the node.

    source ── entries ── join halves ── mask ── bounded log on disk ── cursor kept ── source freed
                                                       └ live tail

A log line is `2026-11-21T12:00:00.123456789Z stdout text`; its stream is `stdout`, `stderr` or `platform`. The
cursor holds the source's position, unfinished lines and the log's sizes, and replaces its predecessor atomically
after the log was written: lines written after the last cursor are cut off on restart and read again.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from batchyard.broker.errors import DiskFull, disk_full

from .bounded import BoundedLog, State
from .engine.logs import Entry, LogSource, Position

LINE_BYTES = 256 << 10
"""A longer line is cut into several, as CloudWatch does."""
READ_BYTES = 1 << 20
FIRST_POLL_S, LAST_POLL_S = 0.02, 0.25

_log = logging.getLogger(__name__)


class LogCapture:
    """The log of one attempt, in a folder of its own. Any thread may call any method.

    `source` may come later (`attach`), so that the platform can speak before there is a container. `on_lines` gets
    finished lines, each with its newline, in order; it must not block. `clock` gives epoch seconds.
    """

    def __init__(
        self,
        folder: Path,
        source: LogSource | None = None,
        *,
        head_bytes: int = 8 << 20,
        tail_bytes: int = 8 << 20,
        mask: Iterable[bytes] = (),
        on_lines: Callable[[Sequence[bytes]], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._cursor = folder / "cursor"
        self._lock = threading.RLock()
        self._on_lines, self._clock = on_lines, clock
        secrets = maskable(mask)
        self._mask = masker(secrets)
        self._overlap = max(map(len, secrets), default=1) - 1
        self._owed: list[bytes] = []  # taken from the source, not yet on disk
        kept = self._load()
        self._position: Position | None = kept.get("position")
        self._halves: dict[bytes, tuple[bytes, bytes]] = {
            stream.encode(): (at.encode(), b64decode(text)) for stream, (at, text) in kept.get("halves", {}).items()
        }
        self._bounded = BoundedLog(
            folder, head_bytes=head_bytes, tail_bytes=tail_bytes, state=State(**kept["log"]) if kept else None
        )
        self._last_words = ""
        self._source: LogSource | None = None
        if source is not None:
            self.attach(source)

    def attach(self, source: LogSource) -> None:
        """Read from here on, or from where a predecessor stopped."""
        with self._lock:
            if self._position is not None:
                source.restore(self._position)
            self._source = source

    def poll(self) -> bool:
        """Take over what the container has written since. Whether there was anything."""
        return self._take(ended=False)

    def platform(self, text: str) -> None:
        """Say something in the job's log that is not the container's."""
        with self._lock:
            if not self._bounded.state.finished:
                self._write(self._said(text))

    def _said(self, text: str) -> list[bytes]:
        stamp = _stamp(self._clock())
        return [b"%b platform %b\n" % (stamp, self._hide(line.encode())) for line in text.splitlines()]

    def finish(self, last_words: str = "") -> Path:
        """Read the rest (call after the container ended), and give the final file. May be called twice.

        last_words: the platform's, behind all that the container said; they stand there once. DiskFull:
        nothing is lost, call again when there is room.
        """
        with self._lock:
            self._last_words = last_words or self._last_words
            try:
                if not self._bounded.state.finished:
                    while self._take(ended=True):
                        pass
                    words, self._last_words = self._last_words, ""
                    self._write([*self._flush(), *self._said(words)])
                    self._bounded.finish()
                    self._keep()
            except OSError as error:
                if disk_full(error):
                    raise DiskFull(f"no space left for the job's log in {self.folder}; free some") from error
                raise
            self.close()
            return self._bounded.path

    def tail(self, count: int) -> str:
        """The last `count` bytes at most, whole lines."""
        with self._lock:
            return self._bounded.last(count).decode(errors="replace")

    def close(self) -> None:
        """Let go of files; what comes later is for a successor to read. May be called twice."""
        with self._lock:
            self._bounded.close()
            if self._source is not None:
                self._source.close()
                self._source = None

    def _take(self, *, ended: bool) -> bool:
        with self._lock:
            if self._source is None or self._bounded.state.finished:
                return False
            if self._owed:  # the disk was full: these first, or more and more would wait in memory
                self._write([])
            entries = self._source.read(READ_BYTES, ended=ended)
            if not entries:
                return False
            self._position = self._source.position
            self._write(self._lines(entries))
            self._source.release()
            return True

    def _lines(self, entries: list[Entry]) -> list[bytes]:
        lines: list[bytes] = []
        hide, halves = self._mask, self._halves
        for stream, at, text, whole in entries:
            at = at or _stamp(self._clock())
            if halves and stream in halves:
                at, before = halves.pop(stream)
                text = before + text
            if hide is not None:
                text = hide(text)
            if whole:
                lines.append(b"%b %b %b\n" % (at if len(at) == 30 else _nanoseconds(at), stream, text))
                continue
            while len(text) >= LINE_BYTES + self._overlap:
                lines.append(b"%b %b %b\n" % (_nanoseconds(at), stream, text[:LINE_BYTES]))
                text = text[LINE_BYTES:]
            halves[stream] = (at, text)
        return lines

    def _flush(self) -> list[bytes]:
        """Lines that never got their newline."""
        halves, self._halves = self._halves, {}
        return [b"%b %b %b\n" % (_nanoseconds(at), stream, self._hide(text)) for stream, (at, text) in halves.items()]

    def _hide(self, text: bytes) -> bytes:
        return text if self._mask is None else self._mask(text)

    def _write(self, lines: list[bytes]) -> None:
        self._owed += lines
        if self._owed:
            self._bounded.append(b"".join(self._owed), len(self._owed))
        lines, self._owed = self._owed, []
        self._keep()
        if lines and self._on_lines is not None:
            self._on_lines(lines)

    def _keep(self) -> None:
        fields = {
            "position": self._position,
            "halves": {
                stream.decode(): [at.decode(), b64encode(text).decode()] for stream, (at, text) in self._halves.items()
            },
            "log": asdict(self._bounded.state),
        }
        draft = self._cursor.with_suffix(".new")
        draft.write_text(json.dumps(fields))
        os.replace(draft, self._cursor)
        self._bounded.forget()

    def _load(self) -> dict[str, Any]:
        """The predecessor's cursor, {} when there was none."""
        try:
            fields: dict[str, Any] = json.loads(self._cursor.read_text())
        except FileNotFoundError:
            return {}
        return fields


class LogPoller:
    """One thread that polls all captures of a node: often while they speak, four times a second while they do not."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wake = threading.Condition()
        self._due: list[tuple[float, int, LogCapture, float]] = []
        self._known: dict[int, LogCapture] = {}
        self._thread: threading.Thread | None = None
        self._stopped = False

    def add(self, capture: LogCapture) -> None:
        """Poll it from now on. The thread starts with the first one."""
        with self._wake:
            self._known[id(capture)] = capture
            heappush(self._due, (self._clock() + FIRST_POLL_S, id(capture), capture, FIRST_POLL_S))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="log-poller")
                self._thread.start()
            self._wake.notify()

    def discard(self, capture: LogCapture) -> None:
        """Poll it no more. May be called twice."""
        with self._wake:
            self._known.pop(id(capture), None)

    def stop(self) -> None:
        """End the thread. May be called twice."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def _run(self) -> None:
        while (capture := self._next()) is not None:
            one, delay_s = capture
            try:
                spoke = one.poll()
            except Exception:
                _log.exception("the log in %s cannot be taken over now", one.folder)
                spoke = False
            delay_s = FIRST_POLL_S if spoke else min(2 * delay_s, LAST_POLL_S)
            with self._wake:
                if id(one) in self._known:
                    heappush(self._due, (self._clock() + delay_s, id(one), one, delay_s))

    def _next(self) -> tuple[LogCapture, float] | None:
        with self._wake:
            while not self._stopped:
                now = self._clock()
                if not self._due:
                    self._wake.wait()
                elif self._due[0][0] > now:
                    self._wake.wait(self._due[0][0] - now)
                else:
                    _, key, capture, delay_s = heappop(self._due)
                    if self._known.get(key) is capture:
                        return capture, delay_s
        return None


def maskable(secrets: Iterable[bytes]) -> list[bytes]:
    """What to look for in a line: each secret, and each line of one that has several; longest first."""
    parts = {part.strip(b"\r") for secret in secrets for part in secret.split(b"\n")}
    return sorted(filter(None, parts), key=lambda part: (-len(part), part))


def masker(parts: Sequence[bytes]) -> Callable[[bytes], bytes] | None:
    """A function that puts `***` for each of these, None when there are none."""
    if not parts:
        return None
    pattern = re.compile(b"|".join(map(re.escape, parts)))
    return lambda text: pattern.sub(b"***", text)


def _stamp(at: float) -> bytes:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()


def _nanoseconds(at: bytes) -> bytes:
    """Nine digits of fraction: the engine leaves trailing zeros away."""
    if len(at) == 30:
        return at
    whole, _, fraction = at.removesuffix(b"Z").partition(b".")
    return b"%b.%bZ" % (whole, fraction.ljust(9, b"0"))
