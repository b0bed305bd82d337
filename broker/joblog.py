"""A job's log for readers: the live tail while it runs, then the sealed log for what the tail did not have.

A line is `<RFC 3339 time> <stdout|stderr|platform> <text>`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from . import arrival, keys
from .blobs import Blobs
from .errors import BlobMissing, BrokerUnavailable, InvalidConfig, NotFound
from .record import Record
from .store import Yard

BLOCK_MS = 1000
REDIS_AWAY_S = 60.0
T = TypeVar("T")


class JobLog:
    """The log of one job. blobs: where ended jobs' logs are; None when the reader has no store."""

    def __init__(self, yard: Yard, blobs: Blobs | None, job_id: str) -> None:
        self._yard, self._blobs, self._id = yard, blobs, job_id
        self._at = "0"  # place in the live tail

    def lines(self, *, follow: bool, awaited: bool = False) -> Iterator[str]:
        """Lines without newlines. awaited: the job was sent, and may not be taken in yet. Raises NotFound,
        InvalidConfig (no store), and what the store raises.
        """
        record = self._first(follow, awaited)
        if record.array is not None:
            raise NotFound(f'job "{self._id}" is an array; its children have logs, {self._id}:0 and on')
        if record.state.ended:
            yield from self._of_ended(record)
            return
        last: str | None = None
        while True:
            # the record first: what was written before it ended is then in the tail that is read next
            record = self._patiently(lambda: self._yard.record(self._id), follow)
            found = self._patiently(lambda: self._tail(wait=follow and not record.state.ended), follow)  # noqa: B023
            for line in found:
                last = line
                yield line
            if not found and (record.state.ended or not follow):
                break
        if record.state.ended and record.log and self._blobs is not None:
            yield from self._sealed(self._blobs.of(record.tenant), record.log, after=last)

    def _first(self, follow: bool, awaited: bool) -> Record:
        pause_s, record = 0.02, self._yard.record if awaited else partial(arrival.record, self._yard)
        while True:
            try:
                return self._patiently(lambda: record(self._id), follow)
            except NotFound:
                if not awaited:
                    raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def _of_ended(self, record: Record) -> Iterator[str]:
        if record.log and self._blobs is not None:
            yield from self._sealed(self._blobs.of(record.tenant), record.log, after=None)
            return
        lines = self._tail(wait=False)
        if not lines and record.log:
            raise InvalidConfig(
                f'the log of job "{record.id}" is {record.log} in the yard\'s blob store; '
                "give --store and --key-file, or the --state of the yard"
            )
        if not lines:
            raise NotFound(f'job "{record.id}" has no log: {record.reason or "it ended before it ran"}')
        yield from lines

    def _tail(self, *, wait: bool) -> list[str]:
        """What the live tail has after what was read; with wait, not at once when there is nothing."""
        key, block = keys.log(self._id), BLOCK_MS if wait else None
        reply: Any = self._yard.guard(lambda: self._yard.redis.xread({key: self._at}, block=block))
        if not reply:
            return []
        entries = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
        self._at = entries[-1][0].decode()
        text = b"".join(fields.get(b"lines", b"") for _, fields in entries).decode("utf-8", "replace")
        return [line for line in text.split("\n") if line]

    def _sealed(self, blobs: Blobs, digest: str, *, after: str | None) -> Iterator[str]:
        """Lines of the sealed log behind a line; where that one was cut out, those that are later."""
        try:
            yield from self._behind(blobs, digest, after)
        except BlobMissing:
            raise NotFound(
                f'the log of job "{self._id}" ({digest}) is not in this store; it has expired, if its queue has '
                "outputs_expire_s, else give the --store that its node used"
            ) from None

    def _behind(self, blobs: Blobs, digest: str, after: str | None) -> Iterator[str]:
        skip = 0
        if after is not None:
            skip = next((n for n, line in enumerate(_lines(blobs, digest), 1) if line == after), 0)
        for n, line in enumerate(_lines(blobs, digest), 1):
            if n > skip and (skip or after is None or _time(line) > _time(after)):
                yield line

    def _patiently(self, act: Callable[[], T], follow: bool) -> T:
        """Who follows waits for a Redis that is away for a while."""
        end = time.monotonic() + (REDIS_AWAY_S if follow else 0)
        while True:
            try:
                return act()
            except BrokerUnavailable:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.3)


def _lines(blobs: Blobs, digest: str) -> Iterator[str]:
    with blobs.open(digest) as stream:
        while line := stream.readline():
            yield line.decode("utf-8", "replace").rstrip("\n")


def _time(line: str) -> str:
    return line.partition(" ")[0]


def text_of(line: str) -> tuple[str, str, str]:
    """(time, stream, text) of a line."""
    at, _, rest = line.partition(" ")
    stream, _, text = rest.partition(" ")
    return at, stream, text
