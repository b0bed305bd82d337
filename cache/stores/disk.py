"""A store in a directory: one file an object, in 256 folders by the first two hex digits.

    <path>/objects/ab/ab…   whole, synced objects
    <path>/new/.new-…       objects in the making; those of a killed writer are swept at start once they are old

Both are on one file system, so that an object gets its name by a hard link, which refuses to replace.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchyard.broker.errors import IntegrityError, NotFound, StoreUnavailable
from batchyard.broker.seal import Readable

from ..newfile import PREFIX, local_disk, new_file, sync_directory
from .protocol import check_name, is_name

_BUFFER_BYTES = 1 << 20
SWEEP_AFTER_S = 24 * 3600.0


class _ObjectFile:
    def __init__(self, file: io.FileIO, path: Path) -> None:
        self._file, self._path = file, path

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self._file.readinto(buffer) or 0
        except OSError as error:
            raise StoreUnavailable(f"cannot read {self._path}: {error.strerror}") from error


class DirectoryStore:
    """Use where one host is the whole yard, or the directory is a shared file system with hard links.

    `now_s` is the wall clock (files carry wall-clock times); `sweep_after_s` is the age from which an unfinished
    object counts as left behind, None for never. A put that is slower than that fails with StoreUnavailable and can be
    repeated.
    """

    def __init__(self, path: Path, *, sweep_after_s: float | None = SWEEP_AFTER_S, now_s: float | None = None) -> None:
        self._objects, self._new = path / "objects", path / "new"
        with local_disk(path):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._objects.mkdir(exist_ok=True, mode=0o700)
            self._new.mkdir(exist_ok=True, mode=0o700)
            there = set(os.listdir(self._objects))
            for name in (f"{number:02x}" for number in range(256)):
                if name not in there:
                    (self._objects / name).mkdir(exist_ok=True, mode=0o700)
            # all folders now, synced here: then a put has only its own folder to sync, whoever made it
            for folder in (self._objects, path, path.parent):
                sync_directory(folder)
            if sweep_after_s is not None:
                self._sweep((time.time() if now_s is None else now_s) - sweep_after_s)

    def _sweep(self, before_s: float) -> None:
        with os.scandir(self._new) as entries:
            for entry in entries:
                try:
                    if entry.name.startswith(PREFIX) and entry.stat(follow_symlinks=False).st_mtime < before_s:
                        os.unlink(entry.path)
                except FileNotFoundError:
                    continue

    def _place(self, name: str) -> Path:
        return self._objects / check_name(name)[:2] / name

    def put_if_absent(self, name: str, source: Readable, size: int) -> bool:
        path = self._place(name)
        made = not os.path.lexists(path) and self._put(name, path, source, size)
        # also after losing: the winner may not have synced its name yet
        with local_disk(path.parent):
            sync_directory(path.parent)
        return made

    def _put(self, name: str, path: Path, source: Readable, size: int) -> bool:
        with new_file(self._new) as new:
            view, written = memoryview(bytearray(max(1, min(size, _BUFFER_BYTES)))), 0
            while count := source.readinto(view):
                new.write(view[:count])
                written += count
            if written != size:
                raise IntegrityError(f"object {name}: the source gave {written} bytes, not {size}")
            new.sync()
            return new.link(path)

    @contextmanager
    def get(self, name: str) -> Iterator[Readable]:
        path = self._place(name)
        try:
            # O_NONBLOCK: something else than a file, planted there, must not block
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            _must_be_there(path.parent)
            raise NotFound(f"object {name} is not in the store") from None
        except OSError as error:
            raise StoreUnavailable(f"cannot read {path}: {error.strerror}") from error
        try:
            file = io.FileIO(fd)
        except OSError as error:  # a directory
            os.close(fd)
            raise StoreUnavailable(f"cannot read {path}: {error.strerror}") from error
        with file:
            yield _ObjectFile(file, path)

    def stat(self, name: str) -> int | None:
        path = self._place(name)
        try:
            return os.lstat(path).st_size
        except FileNotFoundError:
            _must_be_there(path.parent)
            return None
        except OSError as error:
            raise StoreUnavailable(f"cannot read {path}: {error.strerror}") from error

    def delete(self, name: str) -> None:
        path = self._place(name)
        with local_disk(path):
            try:
                path.unlink()
            except FileNotFoundError:
                _must_be_there(path.parent)

    def names(self) -> Iterator[str]:
        for number in range(256):
            folder = f"{self._objects}/{number:02x}"
            try:
                found = os.listdir(folder)
            except OSError as error:
                raise StoreUnavailable(f"cannot read {folder}: {error.strerror}") from error
            yield from filter(is_name, found)  # others are not ours


def _must_be_there(folder: Path) -> None:
    """All folders are made with the store: one that is gone tells nothing of an object."""
    if not folder.is_dir():
        raise StoreUnavailable(f"there is no folder {folder}; see whether the store's file system is mounted")
