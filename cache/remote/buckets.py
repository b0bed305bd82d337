"""The buckets that jobs name and that are in use."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from batchyard.broker.errors import Permanent

from ..stores.access import S3Access

if TYPE_CHECKING:
    from .bucket import Bucket


class Buckets:
    """By access: connections are kept as long as somebody uses the same one again."""

    def __init__(self, refused: type[Permanent], most: int = 32) -> None:
        self._refused, self._most = refused, most
        self._lock = threading.Lock()
        self._open: dict[tuple[S3Access, str, str], Bucket] = {}

    def get(self, access: S3Access, bucket: str, who: str) -> Bucket:
        from .bucket import Bucket  # the SDK takes a while to import, and most jobs name no bucket

        with self._lock:
            key = (access, bucket, who)
            made = self._open.pop(key, None) or Bucket(access, bucket, who=who, refused=self._refused)
            self._open[key] = made
            while len(self._open) > self._most:
                del self._open[next(iter(self._open))]
            return made
