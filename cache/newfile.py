"""Files that appear whole or not at all, and what a full or broken local disk is called."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from batchyard.broker.errors import DiskFull, StoreUnavailable, disk_full

PREFIX = ".new-"


@contextmanager
def local_disk(where: Path) -> Iterator[None]:
    """Turn OSErrors of the body into DiskFull or StoreUnavailable that name `where`. Enclose no reading of sources."""
    try:
        yield
    except OSError as error:
        if disk_full(error):
            raise DiskFull(f"no space left for {where}; free some, or give the cache a larger disk") from error
        raise StoreUnavailable(f"cannot write {where}: {error.strerror or error}") from error


def sync_directory(path: Path) -> None:
    """Make names in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class NewFile:
    """A file under a temporary name, mode 0600. Give it its name with `replace` or `link`, or it goes away."""

    def __init__(self, fd: int, temporary: Path) -> None:
        self._fd = fd
        self._temporary = temporary

    def write(self, piece: memoryview) -> None:
        with local_disk(self._temporary.parent):
            while piece:
                piece = piece[os.write(self._fd, piece) :]

    def write_at(self, at: int, piece: memoryview) -> None:
        """At this offset, wherever writing has come to."""
        with local_disk(self._temporary.parent):
            while piece:
                count = os.pwrite(self._fd, piece, at)
                piece, at = piece[count:], at + count

    def sync(self) -> None:
        with local_disk(self._temporary.parent):
            os.fsync(self._fd)

    def replace(self, path: Path, mode: int) -> None:
        """Take the name, with this mode, from whatever file had it."""
        with local_disk(path.parent):
            os.fchmod(self._fd, mode)
            os.replace(self._temporary, path)

    def link(self, path: Path) -> bool:
        """Take the name if it is free; whether it was."""
        with local_disk(path.parent):
            try:
                os.link(self._temporary, path, follow_symlinks=False)
            except FileExistsError:
                return False
            return True


def write_new(path: str, data: memoryview, mode: int) -> None:
    """A file with this content and mode, where nothing is yet: for a folder that nobody else sees. OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


@contextmanager
def new_file(folder: Path) -> Iterator[NewFile]:
    """A new file in `folder`, removed at the end of the body unless it took a name by `replace`."""
    temporary = folder / (PREFIX + secrets.token_hex(12))
    with local_disk(folder):
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield NewFile(fd, temporary)
    finally:
        os.close(fd)
        with suppress(OSError):  # gone by `replace`, or swept; a name that stays is swept later
            os.unlink(temporary)
