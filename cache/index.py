"""What a node's caches hold, when it was last used, and for whom it is pinned, in one SQLite file.

The node works from memory and writes each change here, so that a restart knows the order of use and whose inputs the
containers that go on are mounted from. The files and objects themselves are the truth: a file that is missing, damaged
or of another boot of the machine is begun anew, and a write that fails costs no more than what the next start does not
know. So nothing is synced (`synchronous=OFF`): a killed process loses nothing, and after a power cut the boot
is another one.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .shelf import Entry

log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    level TEXT, key TEXT, place TEXT, bytes INTEGER, used INTEGER, PRIMARY KEY (level, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stamps (level TEXT, key TEXT, stamp TEXT, PRIMARY KEY (level, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pins (owner TEXT, key TEXT, PRIMARY KEY (owner, key)) WITHOUT ROWID;
"""
_BROKEN = (sqlite3.Error, UnicodeDecodeError)  # the latter of a message that quotes the file
_MOST_USED = 1 << 62
_SAVE = "INSERT OR REPLACE INTO entries (level, key, place, bytes, used) VALUES (?, ?, ?, ?, ?)"
_STAMP = "INSERT OR REPLACE INTO stamps (level, key, stamp) VALUES (?, ?, ?)"
_PIN = "INSERT OR IGNORE INTO pins (owner, key) VALUES (?, ?)"


def this_boot() -> str:
    """The name of the machine's boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Index:
    """In `folder`, which one node has to itself. Raises nothing: the log says what is wrong with the file.

    May be shared by threads. A use with its pin takes about 20 µs.
    """

    def __init__(self, folder: Path, *, boot_id: str | None = None) -> None:
        self._path = folder / f"index-{boot_id or this_boot()}.sqlite"
        self._lock = threading.Lock()
        self._failing = False
        for other in folder.glob("index-*.sqlite*"):
            if not other.name.startswith(self._path.name):
                other.unlink(missing_ok=True)
        self.is_new = not self._path.exists()
        """whether nothing is known from before"""
        self._db = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect(str(self._path))
        except _BROKEN as error:
            log.warning("%s is damaged and made anew: %s", self._path, error)
        self.is_new = True
        for tail in ("", "-wal", "-shm"):
            with suppress(OSError):
                self._path.with_name(self._path.name + tail).unlink()
        try:
            return self._connect(str(self._path))
        except _BROKEN as error:
            log.warning("%s cannot be kept, so the next start will not know what was used last: %s", self._path, error)
            return self._connect(":memory:")

    def _connect(self, path: str) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=OFF")
            db.executescript(_SCHEMA)
            [[found]] = db.execute("PRAGMA quick_check(1)")
            if found != "ok":
                raise sqlite3.DatabaseError(found)
            for table in ("entries", "stamps", "pins"):
                db.execute(f"SELECT * FROM {table} LIMIT 1").fetchall()
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        """May be called twice; what is written after is lost."""
        with self._lock:
            self._db.close()

    def load(self, level: str) -> list[tuple[str, Entry]]:
        """Place and entry of all that the level held, the least recently used first."""
        rows = self._read(
            "SELECT place, key, bytes, used, stamp FROM entries LEFT JOIN stamps USING (level, key)"
            " WHERE level = ? ORDER BY used",
            level,
        )
        return [found for row in rows if (found := _entry(*row)) is not None]

    def pins(self) -> list[tuple[str, str]]:
        """Owner and key of each pin."""
        return [(str(owner), str(key)) for owner, key in self._read("SELECT owner, key FROM pins")]

    def _read(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(query, values).fetchall()
            except _BROKEN as error:
                self._failed(error)
                return []

    def save(self, level: str, place: str, entry: Entry, pin_for: str | None = None, *, stamped: bool = False) -> None:
        """An entry was used, or is new; and pinned. stamped: its stamp is new."""
        row = (level, entry.key, place, entry.bytes, entry.used)
        self._write(
            (_SAVE, [row]),
            (_STAMP, [(level, entry.key, entry.stamp)] if stamped else []),
            (_PIN, [(pin_for, entry.key)] if pin_for is not None else []),
        )

    def save_all(self, level: str, entries: Iterable[tuple[str, Entry]]) -> None:
        """The level holds this and nothing else."""
        held = list(entries)
        rows = [(level, entry.key, place, entry.bytes, entry.used) for place, entry in held]
        stamps = [(level, entry.key, entry.stamp) for _, entry in held if entry.stamp]
        both = [(f"DELETE FROM {table} WHERE level = ?", [(level,)]) for table in ("entries", "stamps")]
        self._write(*both, (_SAVE, rows), (_STAMP, stamps))

    def remove(self, level: str, keys: Iterable[str]) -> None:
        gone = [(level, key) for key in keys]
        self._write(*((f"DELETE FROM {table} WHERE level = ? AND key = ?", gone) for table in ("entries", "stamps")))

    def pin(self, owner: str, keys: Iterable[str]) -> None:
        self._write((_PIN, [(owner, key) for key in keys]))

    def unpin(self, owners: Iterable[str]) -> None:
        """All pins of these owners."""
        self._write(("DELETE FROM pins WHERE owner = ?", [(owner,) for owner in owners]))

    def _write(self, *changes: tuple[str, Sequence[tuple[object, ...]]]) -> None:
        """In one transaction."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                for statement, rows in changes:
                    for row in rows:
                        self._db.execute(statement, row)
                self._db.execute("COMMIT")
                self._failing = False
            except _BROKEN as error:
                with suppress(*_BROKEN):
                    self._db.execute("ROLLBACK")
                self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Once until it works again."""
        if not self._failing:
            log.warning("%s does not work, so the next start may not know what was used last: %s", self._path, error)
        self._failing = True


def _entry(place: object, key: object, bytes_: object, used: object, stamp: object) -> tuple[str, Entry] | None:
    """None: a value that was never written; a sound file may have one where the disk changed a bit."""
    if not (isinstance(place, str) and isinstance(key, str) and isinstance(bytes_, int) and isinstance(used, int)):
        return None
    if bytes_ < 0 or not 0 <= used <= _MOST_USED:
        return None
    return place, Entry(key=key, bytes=bytes_, used=used, stamp=stamp if isinstance(stamp, str) else "")


def held_bytes(folder: Path, level: str, place: str) -> int:
    """What a node that does not run now has written down for a place; 0 if that cannot be told."""
    for path in folder.glob("index-*.sqlite"):
        try:
            db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)
            try:
                [[found]] = db.execute(
                    "SELECT coalesce(sum(bytes), 0) FROM entries WHERE level = ? AND place = ?", (level, place)
                )
                return int(found)
            finally:
                db.close()
        except (sqlite3.Error, ValueError):
            continue
    return 0
