"""Objects in buckets that jobs name, and which buckets are in use."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchyard.broker.errors import Permanent

from .access import S3Access

if TYPE_CHECKING:
    from .remote_bucket import Bucket

OWN_FOLDER = ".batchyard"
"""Where outputs wait until they may have their names; what waits is no part of any directory."""
_WAITING = re.compile(rf"(?:^|/){re.escape(OWN_FOLDER)}/[^/]+/[0-9a-f]{{32}}/[^/]+/[0-9]+/[0-9]+")


def is_waiting(key: str) -> bool:
    """Whether a key is that of an output that has not got its name yet (`deliver.AttemptMark`)."""
    return _WAITING.search(key) is not None


class Changed(Exception):
    """The object is not the one that was listed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An object of a listing. size in bytes; etag without quotes."""

    key: str
    size: int
    etag: str


class Buckets:
    """Buckets in use, by access: connections are kept as long as somebody uses the same one again."""

    def __init__(self, refused: type[Permanent], most: int = 32) -> None:
        self._refused, self._most = refused, most
        self._lock = threading.Lock()
        self._open: dict[tuple[S3Access, str, str], Bucket] = {}

    def get(self, access: S3Access, bucket: str, who: str) -> Bucket:
        from .remote_bucket import Bucket  # the SDK takes a while to import, and most jobs name no bucket

        with self._lock:
            key = (access, bucket, who)
            made = self._open.pop(key, None) or Bucket(access, bucket, who=who, refused=self._refused)
            self._open[key] = made
            while len(self._open) > self._most:
                del self._open[next(iter(self._open))]
            return made
