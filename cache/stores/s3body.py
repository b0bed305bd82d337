"""The bytes of an object as they come, over as many connections as it takes."""

from __future__ import annotations

import http.client
from typing import Any

import urllib3

from batchyard.broker.errors import StoreUnavailable

from .protocol import CopyLost, Unreadable
from .s3call import Answer, Calls, code_of, reason

_PAUSES_S = (0.1, 0.5, 1.5)
_BROKEN = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_SEES_ROT = "SlowDownRead"
"""What MinIO answers when the first block that is asked for fails its checksum, or no drive gives it."""


def beginning(calls: Calls, key: str, what: str, count: int) -> bytes:
    """The first `count` bytes of an object, or all. NotFound, Unreadable, StoreUnavailable."""
    answer = calls.ask("GET", key, headers={"Range": f"bytes=0-{count - 1}"})
    if answer.status == 416:  # it is empty
        return b""
    if answer.status not in {200, 206}:
        if code_of(answer) == _SEES_ROT:
            raise Unreadable(f"{what} cannot be read by the store itself ({_SEES_ROT})")
        raise calls.error(answer, what)
    return answer.content[:count]


class S3Body:
    """A GET. When the connection ends early, the rest is asked for anew, of the same object only (If-Match).

    MinIO, at a block that fails its checksum, ends the connection in order and does so each time: so when the answer
    ends thrice more at one byte without any error, while HEAD says that the object is there, it is Unreadable.
    """

    def __init__(self, calls: Calls, key: str, what: str) -> None:
        self._calls, self._key, self._what = calls, key, what
        self._at = 0
        self._answer: Answer | None = None
        self._open({})
        self._tag = self._answered.header("ETag")
        self._size = self._length()

    @property
    def _answered(self) -> Answer:
        assert self._answer is not None
        return self._answer

    def _open(self, headers: dict[str, str], *, repeat: bool = True) -> None:
        answer = self._calls.ask("GET", self._key, headers=headers, stream=True, repeat=repeat)
        if answer.status not in {200, 206}:
            self._refused(answer)
        self._answer = answer
        # straight into the caller's buffer: urllib3's own `readinto` copies twice
        source: Any = getattr(answer.raw, "_fp", None)
        self._source = source if isinstance(source, http.client.HTTPResponse) else answer.raw

    def _refused(self, answer: Answer) -> None:
        if answer.status == 412 or (answer.status == 404 and self._at):
            raise CopyLost(f"{self._what} was replaced or deleted while it was read; try again")
        if code_of(answer) == _SEES_ROT and self._is_there():
            raise Unreadable(f"{self._what} cannot be read by the store itself ({_SEES_ROT})")
        raise self._calls.error(answer, self._what)

    def _length(self) -> int:
        try:
            return int(self._answered.header("Content-Length"))
        except ValueError:
            self.close()
            raise StoreUnavailable(f"{self._what}: the store does not say its size") from None

    def _is_there(self) -> bool:
        return self._calls.ask("HEAD", self._key).status == 200

    def readinto(self, buffer: memoryview, /) -> int:
        if self._at == self._size or not len(buffer):
            return 0
        wanted = buffer[: self._size - self._at]
        try:
            count = self._source.readinto(wanted)
            failed: BaseException | None = None
        except _BROKEN as error:
            count, failed = 0, error
        if not count:
            count = self._again(wanted, failed)
        self._at += count
        return count

    def _again(self, wanted: memoryview, failed: BaseException | None) -> int:
        """The next bytes, from a new connection."""
        in_order = failed is None
        for pause_s in _PAUSES_S:
            self.close()
            self._calls.pause(pause_s)
            try:
                self._open({"Range": f"bytes={self._at}-", "If-Match": self._tag}, repeat=False)
                if self._answered.status != 206 or self._answered.header("ETag") != self._tag:
                    raise CopyLost(f"{self._what}: the store does not go on where it stopped; try again")
                if count := self._source.readinto(wanted):
                    return count
            except (Unreadable, CopyLost):
                raise
            except (StoreUnavailable, *_BROKEN) as error:
                in_order, failed = False, error
        self.close()
        if in_order and self._at and self._is_there():
            raise Unreadable(f"{self._what} always ends at byte {self._at} of {self._size}")
        why = f": {reason(failed)}" if failed else ""
        raise StoreUnavailable(f"{self._what} ended early, at byte {self._at} of {self._size}{why}")

    def close(self) -> None:
        """Gives the connection back, or ends it where bytes are left. May be called twice."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        if self._at != self._size:
            answer.raw.close()
        answer.raw.release_conn()
