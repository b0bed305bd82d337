"""What was read from elsewhere before: which digest an object had, and how to ask whether it still has it.

A note, not a truth: it may be lost or thrown away at any time, which costs another transfer. Its keys are hashes, since
URIs may hold signatures.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..digest import Digest
from ..stores.access import S3Access

log = logging.getLogger(__name__)
MOST_ROWS = 100_000
_TABLE = """CREATE TABLE IF NOT EXISTS known
    (name TEXT PRIMARY KEY, validator TEXT NOT NULL, digest TEXT NOT NULL, used REAL NOT NULL) WITHOUT ROWID"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """validator: what the source proves with that nothing has changed."""

    validator: str
    digest: Digest


def name_of(uri: str, secret: str | None, access: S3Access | None, tenant: str = "") -> str:
    """The key of a URI as one job may read it: by another's keys, for another tenant, or at another endpoint, it is
    something else.
    """
    asked_as = (access.endpoint_url or "", access.access_key or "") if access else ("", "")
    return hashlib.sha256("\0".join((uri, secret or "", *asked_as, tenant)).encode()).hexdigest()


class KnownRemotes:
    """Share it between threads. path: a file of its own; what is no such table there is thrown away."""

    def __init__(self, path: Path, *, most_rows: int = MOST_ROWS, now_s: Callable[[], float] = time.time) -> None:
        self._path, self._most, self._now_s = path, most_rows, now_s
        self._lock = threading.Lock()
        self._table: sqlite3.Connection | None = None
        self._put = 0

    def get(self, name: str) -> Known | None:
        rows = self._run("SELECT validator, digest FROM known WHERE name = ?", name)
        return Known(validator=rows[0][0], digest=rows[0][1]) if rows else None

    def put(self, name: str, known: Known) -> None:
        self._run("REPLACE INTO known VALUES (?, ?, ?, ?)", name, known.validator, known.digest, self._now_s())
        self._put += 1
        if self._put % 256 == 1:
            self._run(
                "DELETE FROM known WHERE used <= (SELECT used FROM known ORDER BY used DESC LIMIT 1 OFFSET ?)",
                self._most,
            )

    def forget(self, name: str) -> None:
        self._run("DELETE FROM known WHERE name = ?", name)

    def close(self) -> None:
        with self._lock:
            if self._table is not None:
                self._table.close()
                self._table = None

    def _run(self, words: str, *values: object) -> list[tuple[str, str]]:
        with self._lock:
            try:
                return self._opened().execute(words, values).fetchall()
            except sqlite3.DatabaseError as error:
                log.warning("what was read before is forgotten: %s", error)
                if self._table is not None:
                    self._table.close()
                    self._table = None
                if not isinstance(error, sqlite3.OperationalError):  # no table of ours: begin a new one
                    for path in (self._path, *(Path(f"{self._path}{end}") for end in ("-wal", "-shm"))):
                        with suppress(OSError):
                            path.unlink()
                return []

    def _opened(self) -> sqlite3.Connection:
        if self._table is None:
            table = sqlite3.connect(self._path, timeout=5, check_same_thread=False, isolation_level=None)
            try:
                table.execute("PRAGMA journal_mode = WAL")
                table.execute("PRAGMA synchronous = OFF")  # a note that a power cut takes costs one transfer
                table.execute(_TABLE)
            except BaseException:
                table.close()
                raise
            self._table = table
        return self._table
