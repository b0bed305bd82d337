"""Opening what a job left in a directory, never anything outside it.

Every step is relative to an open directory and follows no symlink. A thing is first opened with O_PATH, which has no
effect on fifos or devices, and looked at; only then is *that same* thing opened for reading. So it does not matter
what the job swaps meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFLNK: "a symlink",
    stat.S_IFDIR: "a directory",
    stat.S_IFREG: "a file",
}


def kind_of(mode: int) -> str:
    """`a fifo`, `a file` … for a message."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown kind")


@contextmanager
def looked_at(name: str, parent: int) -> Iterator[tuple[int, os.stat_result]]:
    """The thing itself (not what a symlink leads to) as an O_PATH descriptor, and what it is. OSError: as `open`."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        yield fd, os.fstat(fd)
    finally:
        os.close(fd)


@contextmanager
def reading(path_fd: int) -> Iterator[int]:
    """A descriptor for reading the same file or directory as an O_PATH descriptor. Check first that it is one."""
    fd = os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not to wait for a lease
    try:
        yield fd
    finally:
        os.close(fd)
