"""Bytes that come from somewhere else, into a new file: hashed on the way, bounded in number and in time."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import urllib3

from batchyard.broker.errors import DiskFull, InputError, StoreUnavailable

from ..copies.flight import OnMoved
from ..digest import Digest
from ..newfile import NewFile, local_disk

BUFFER_BYTES = 1 << 18
PACE_S = 60.0
LEAST_BYTES_PER_S = 1024
"""Over PACE_S. Who sends less than this holds a place on the node for nothing."""

Stopped = Callable[[], bool]


class Body:
    """What a GET gives, as it is sent: nothing is unpacked. size: in bytes, None if nobody has said it.

    validator: what a later GET asks with whether it is still the same.
    """

    def __init__(self, answer: urllib3.BaseHTTPResponse, shown: str, validator: str | None) -> None:
        self._answer, self.shown, self.validator = answer, shown, validator
        length = answer.headers.get("Content-Length", "")
        self.size = int(length) if length.isascii() and length.isdigit() else None
        chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"
        self.ends = chunked or self.size is not None
        """whether it can be told from one that was cut off"""

    def read(self) -> bytes:
        """Some bytes, as soon as there are any; none at the end. StoreUnavailable: it ended before its end."""
        try:
            return self._answer.read1(BUFFER_BYTES, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise StoreUnavailable(f"{self.shown} ended early: {reason(error)}") from error

    def save(
        self,
        new: NewFile,
        *,
        most_bytes: int,
        stopped: Stopped,
        on_moved: OnMoved | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> tuple[Digest, int]:
        """All of it into a file; its digest and size. InputError: it is larger than `most_bytes`. StoreUnavailable: it
        ended early, came too slowly, or `stopped` said that nobody wants it any more. DiskFull.
        """
        if self.size is not None and self.size > most_bytes:
            raise self.too_large(self.size, most_bytes)
        seen, size = hashlib.sha256(), 0
        since, then = now(), 0
        while piece := self.read():
            size += len(piece)
            if size > most_bytes:
                raise self.too_large(size, most_bytes)
            seen.update(piece)
            new.write(memoryview(piece))
            if on_moved is not None:
                on_moved(size, self.size or 0)
            if stopped():
                raise StoreUnavailable(f"{self.shown} was given up: its job was told to stop")
            if (passed_s := now() - since) >= PACE_S:
                if size - then < LEAST_BYTES_PER_S * passed_s:
                    raise StoreUnavailable(f"{self.shown} comes too slowly: {size - then} bytes in {passed_s:.0f} s")
                since, then = now(), size
        if self.size is not None and size != self.size:
            raise StoreUnavailable(f"{self.shown} ended early: {size} of {self.size} bytes came")
        return f"sha256:{seen.hexdigest()}", size

    def too_large(self, size: int, most_bytes: int) -> InputError:
        return InputError(
            f"{self.shown} has {size} bytes or more, and this node fetches {most_bytes} at most (--fetch-gib)"
        )


def check_room(folder: Path, size: int, shown: str) -> None:
    """DiskFull: that many bytes do not fit where `folder` is."""
    with local_disk(folder):
        there = os.statvfs(folder)
    if size > there.f_bavail * there.f_frsize:
        raise DiskFull(f"no space left for the {size} bytes of {shown}; free some, or give the cache a larger disk")


def reason(error: Exception) -> str:
    """What the network said, on one line, without what stands behind a question mark."""
    cause: object = getattr(error, "reason", None) or error
    return " ".join(str(cause).partition("?")[0].split())[:300] or type(error).__name__
