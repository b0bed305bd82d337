"""Live tails of all jobs of a node, sent by one thread. A Redis that is away costs lines of the tail, never the job."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from batchyard.broker.errors import BrokerUnavailable
from batchyard.broker.logs import CHUNK_BYTES, LiveTail

log = logging.getLogger(__name__)
BATCH_S = 0.1


class LiveShipper:
    """Collects lines for a moment, then appends them to the jobs' streams."""

    def __init__(self, tail: LiveTail) -> None:
        self._tail, self._lock, self._wake = tail, threading.Lock(), threading.Event()
        self._lines: dict[str, bytes] = {}
        self._ended: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="live-tail", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def lines_of(self, job_id: str) -> Callable[[Sequence[bytes]], None]:
        """What a capture calls with finished lines."""

        def add(lines: Sequence[bytes]) -> None:
            with self._lock:
                self._lines[job_id] = (self._lines.get(job_id, b"") + b"".join(lines))[-4 * CHUNK_BYTES :]
            self._wake.set()

        return add

    def end(self, job_id: str) -> None:
        """The attempt is over: whoever follows is told so."""
        with self._lock:
            self._ended.add(job_id)
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            threading.Event().wait(BATCH_S)
            self._wake.clear()
            with self._lock:
                lines, self._lines = self._lines, {}
                ended, self._ended = self._ended, set()
            for job_id in {*lines, *ended}:
                try:
                    self._send(job_id, lines.get(job_id, b""), job_id in ended)
                except BrokerUnavailable as error:
                    log.debug("live tail of %s: %s", job_id, error)

    def _send(self, job_id: str, lines: bytes, ended: bool) -> None:
        while lines:
            cut = lines.rfind(b"\n", 0, CHUNK_BYTES) + 1 or len(lines)
            self._tail.append(job_id, lines[:cut])
            lines = lines[cut:]
        if ended:
            self._tail.end(job_id)
