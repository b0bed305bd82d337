"""Live tails of all jobs of a node, sent by one thread. A Redis that is away costs lines of the tail, never the job.

A job that is over within FIRST_S sends nothing: its whole log is in the store by the time that anybody could look.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from batchyard.broker.errors import BrokerUnavailable
from batchyard.broker.logs import CHUNK_BYTES, LiveTail

log = logging.getLogger(__name__)
FIRST_S, BATCH_S = 1.0, 0.1


@dataclass(slots=True)
class _Tail:
    lines: bytes = b""
    since: float = field(default_factory=time.monotonic)
    sent: bool = False
    ended: bool = False


class LiveShipper:
    """Collects lines for a moment, then appends them to the jobs' streams."""

    def __init__(self, tail: LiveTail) -> None:
        self._tail, self._change = tail, threading.Condition()
        self._tails: dict[str, _Tail] = {}
        self._thread = threading.Thread(target=self._run, name="live-tail", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def lines_of(self, job_id: str) -> Callable[[Sequence[bytes]], None]:
        """What a capture calls with finished lines."""

        def add(lines: Sequence[bytes]) -> None:
            with self._change:
                tail = self._tails.setdefault(job_id, _Tail())
                tail.lines = (tail.lines + b"".join(lines))[-4 * CHUNK_BYTES :]
                self._change.notify()

        return add

    def end(self, job_id: str) -> None:
        """The attempt is over: whoever follows is told so, if anything was sent."""
        with self._change:
            tail = self._tails.get(job_id)
            if tail is not None and tail.sent:
                tail.ended = True
                self._change.notify()
            elif tail is not None:
                del self._tails[job_id]

    def _run(self) -> None:
        while True:
            for job_id, lines, ended in self._due():
                try:
                    self._send(job_id, lines, ended)
                except BrokerUnavailable as error:
                    log.debug("live tail of %s: %s", job_id, error)
                except Exception:  # the tails of all other jobs go on
                    log.exception("live tail of %s", job_id)
            time.sleep(BATCH_S)

    def _due(self) -> list[tuple[str, bytes, bool]]:
        """Waits until there is something to send, and takes it."""
        with self._change:
            while not (due := [i for i, t in self._tails.items() if t.ended or (t.lines and self._ripe(t))]):
                self._change.wait(FIRST_S if any(t.lines for t in self._tails.values()) else None)
            out = []
            for job_id in due:
                tail = self._tails[job_id]
                out.append((job_id, tail.lines, tail.ended))
                tail.lines, tail.sent = b"", True
                if tail.ended:
                    del self._tails[job_id]
            return out

    @staticmethod
    def _ripe(tail: _Tail) -> bool:
        return tail.sent or time.monotonic() - tail.since >= FIRST_S

    def _send(self, job_id: str, lines: bytes, ended: bool) -> None:
        while lines:
            cut = lines.rfind(b"\n", 0, CHUNK_BYTES) + 1 or len(lines)
            self._tail.append(job_id, lines[:cut])
            lines = lines[cut:]
        if ended:
            self._tail.end(job_id)
