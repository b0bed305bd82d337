"""The live tail of a job's log through Redis: a short, capped stream that goes away by itself (`joblog` reads it).

The whole log is sealed into the blob store when the attempt ends; its digest is on the record.
"""

from __future__ import annotations

from . import keys
from .store import Yard

CHUNKS = 200  # entries kept, each at most CHUNK_BYTES
CHUNK_BYTES = 32 * 1024
KEEP_S = 3600


class LiveTail:
    """Writes live tails. Lines are bytes as in the log file: `<time> <stream> <text>\\n`."""

    def __init__(self, yard: Yard) -> None:
        self._yard = yard

    def append(self, job_id: str, lines: bytes) -> None:
        """One batch of whole lines; of a batch that is too long the end is kept. Raises BrokerUnavailable."""
        self._add(job_id, {"lines": lines[-CHUNK_BYTES:]})

    def end(self, job_id: str) -> None:
        """No more lines of this attempt."""
        self._add(job_id, {"end": b"1"})

    def _add(self, job_id: str, fields: dict[str, bytes]) -> None:
        pipe = self._yard.redis.pipeline(transaction=False)
        pipe.xadd(keys.log(job_id), fields, maxlen=CHUNKS, approximate=True)  # type: ignore[arg-type]
        pipe.expire(keys.log(job_id), KEEP_S)
        self._yard.guard(pipe.execute)
