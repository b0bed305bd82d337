"""Objects in buckets that jobs name."""

from __future__ import annotations

import re
from dataclasses import dataclass

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
