"""Taking what a finished job declared as outputs from its work directory."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from batchyard.broker.errors import IntegrityError, OutputError

from .beneath import kind_of, looked_at, reading
from .digest import Blob
from .manifest import MOST_DEPTH
from .sealed import BlobStore, OnBytes
from .tree import put_tree


def publish(
    blobs: BlobStore,
    root: Path,
    path: str,
    name: str,
    *,
    shown_root: str = "/work",
    on_bytes: OnBytes | None = None,
) -> Blob:
    """Keep the file or directory `path`, relative to the job's work directory `root`, durable when it returns.

    `name` is the output's name and `shown_root` where the job sees `root`, both for messages. OutputError: missing,
    outside of `root`, a symlink on the way, not a file or directory, unreadable, or changing while it is read.
    """
    output = _Output(blobs, name, shown_root, on_bytes)
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise output.refused(f"the work directory cannot be read: {error.strerror}") from error
    try:
        return output.take(fd, _names_of(path, output), "")
    finally:
        os.close(fd)


class _Output:
    def __init__(self, blobs: BlobStore, name: str, shown_root: str, on_bytes: OnBytes | None) -> None:
        self._blobs, self._name, self.shown_root = blobs, name, shown_root.rstrip("/")
        self._on_bytes = on_bytes

    def refused(self, reason: str) -> OutputError:
        return OutputError(f'output "{self._name}": {reason}')

    def take(self, folder: int, names: list[str], walked: str) -> Blob:
        """Go down by one name, or keep the directory that this is."""
        if not names:
            return self._tree(folder)
        walked = f"{walked}/{names[0]}"
        shown = self.shown_root + walked
        try:
            with looked_at(names[0], folder) as (found, status):
                mode, last = status.st_mode, len(names) == 1
                if stat.S_ISDIR(mode):
                    with reading(found) as fd:
                        return self.take(fd, names[1:], walked)
                if stat.S_ISREG(mode) and last:
                    with reading(found) as fd:
                        return self._file(fd, shown)
                if stat.S_ISLNK(mode):
                    target = os.readlink("", dir_fd=found)
                    raise self.refused(f"{shown} is a symlink to {target[:200]!r}; name what it leads to instead")
                raise self.refused(f"{shown} is {kind_of(mode)}, not a {'file or directory' if last else 'directory'}")
        except FileNotFoundError:
            missing = "/".join([shown, *names[1:]])
            raise self.refused(f"{missing} was not written by the job") from None
        except OSError as error:
            raise self.refused(f"{shown} cannot be read: {error.strerror}") from error

    def _file(self, fd: int, shown: str) -> Blob:
        try:
            return self._blobs.put_fd(fd, self._on_bytes)
        except IntegrityError:  # the only one of a put
            raise self.refused(f"{shown} changed while it was read; let the job end what writes it") from None

    def _tree(self, folder: int) -> Blob:
        try:
            return put_tree(self._blobs, folder, self._on_bytes)
        except OutputError as error:
            raise self.refused(str(error)) from error


def _names_of(path: str, output: _Output) -> list[str]:
    names: list[str] = []
    if path.startswith("/"):
        raise output.refused(f"{path[:200]} is absolute; give a path relative to {output.shown_root}")
    if "\0" in path:
        raise output.refused("its path holds a NUL")
    for name in path.split("/"):
        if name == ".." and not names:
            raise output.refused(f"{path[:200]} leads out of {output.shown_root}")
        if name == "..":
            names.pop()  # as written: a symlink on the way is refused anyhow
        elif name not in ("", "."):
            names.append(name)
    if len(names) > MOST_DEPTH:
        raise output.refused(f"its path is deeper than {MOST_DEPTH} directories")
    return names
