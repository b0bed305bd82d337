"""Taking what a finished job declared as outputs from its work directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from batchyard.broker import globs
from batchyard.broker.errors import IntegrityError, OutputError, OutputMissing
from batchyard.broker.globs import Pattern

from .beneath import kind_of, looked_at, reading
from .digest import Blob
from .manifest import MOST_DEPTH
from .matching import Matched, matched
from .sealed import BlobStore, OnBytes
from .tree import put_tree

T = TypeVar("T")


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

    A pattern gives a directory of what matches, see `broker.globs`. `name` is the output's name and `shown_root` where
    the job sees `root`, both for messages. OutputMissing. OutputError: outside of `root`, a symlink on the way, not a
    file or directory, unreadable, or changing while it is read.
    """
    output = _Output(name, shown_root, path)

    def file(fd: int, shown: str) -> Blob:
        try:
            return blobs.put_fd(fd, on_bytes)
        except IntegrityError:  # the only one of a put
            raise output.refused(f"{shown} changed while it was read; let the job end what writes it") from None

    def directory(fd: int) -> Blob:
        if not output.is_pattern:
            return put_tree(blobs, fd, on_bytes)
        return put_tree(blobs, fd, on_bytes, keep=output.matched(fd).paths.__contains__)

    return output.found(root, _Taker(file=file, directory=directory))


def size_of(root: Path, path: str, name: str, *, shown_root: str = "/work") -> int:
    """How many bytes the files have that `publish` would keep. Raises as it."""
    output = _Output(name, shown_root, path)
    taker = _Taker(file=lambda fd, _: os.fstat(fd).st_size, directory=lambda fd: output.matched(fd).size)
    return output.found(root, taker)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Taker(Generic[T]):
    """What is done with what was found. file: gets a descriptor for reading, and its path as the job sees it."""

    file: Callable[[int, str], T]
    directory: Callable[[int], T]


class _Output:
    def __init__(self, name: str, shown_root: str, path: str) -> None:
        self._name, self._shown_root, self._path = name, shown_root.rstrip("/"), path
        self.is_pattern = globs.is_pattern(path)

    def refused(self, reason: str, kind: type[OutputError] = OutputError) -> OutputError:
        return kind(f'output "{self._name}": {reason}')

    def found(self, root: Path, taker: _Taker[T]) -> T:
        try:
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self.refused(f"the work directory cannot be read: {error.strerror}") from error
        try:
            return self._take(fd, self._names(), "", taker)
        finally:
            os.close(fd)

    def matched(self, folder: int) -> Matched:
        """Of the directory before the pattern."""
        found = matched(folder, self._pattern)
        if not found.found:
            raise self.refused(f"nothing matches {self._shown_root}/{self._path}", OutputMissing)
        return found

    def _take(self, folder: int, names: list[str], walked: str, taker: _Taker[T]) -> T:
        """Go down by one name, or take the directory that this is."""
        if not names:
            with self._named():
                return taker.directory(folder)
        walked = f"{walked}/{names[0]}"
        shown = self._shown_root + walked
        try:
            with looked_at(names[0], folder) as (found, status):
                mode, last = status.st_mode, len(names) == 1
                if stat.S_ISDIR(mode):
                    with reading(found) as fd:
                        return self._take(fd, names[1:], walked, taker)
                if stat.S_ISREG(mode) and last and not self.is_pattern:
                    with reading(found) as fd:
                        return taker.file(fd, shown)
                if stat.S_ISLNK(mode):
                    target = os.readlink("", dir_fd=found)
                    raise self.refused(f"{shown} is a symlink to {target[:200]!r}; name what it leads to instead")
                what = "file or directory" if last and not self.is_pattern else "directory"
                raise self.refused(f"{shown} is {kind_of(mode)}, not a {what}")
        except FileNotFoundError:
            missing = "/".join([shown, *names[1:]])
            raise self.refused(f"{missing} was not written by the job", OutputMissing) from None
        except OSError as error:
            raise self.refused(f"{shown} cannot be read: {error.strerror}") from error

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OutputError as error:
            if str(error).startswith(self._start):
                raise
            raise self.refused(str(error)) from error

    @property
    def _start(self) -> str:
        return f'output "{self._name}": '

    @property
    def _pattern(self) -> Pattern:
        return globs.split(self._path)[1]

    def _names(self) -> list[str]:
        path, names = globs.split(self._path)[0], list[str]()
        if self._path.startswith("/"):
            raise self.refused(f"{self._path[:200]} is absolute; give a path relative to {self._shown_root}")
        if "\0" in self._path:
            raise self.refused("its path holds a NUL")
        for name in path.split("/"):
            if name == ".." and not names:
                raise self.refused(f"{self._path[:200]} leads out of {self._shown_root}")
            if name == "..":
                names.pop()  # as written: a symlink on the way is refused anyhow
            elif name not in ("", "."):
                names.append(name)
        if len(names) > MOST_DEPTH:
            raise self.refused(f"its path is deeper than {MOST_DEPTH} directories")
        return names
