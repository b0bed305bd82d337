"""How much there is to be kept, told beforehand from what the file system says."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from .beneath import looked_at, reading
from .manifest import MOST_DEPTH, MOST_ENTRIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """Files, and the bytes in them."""

    files: int = 0
    bytes: int = 0

    def __add__(self, other: Weight) -> Weight:
        return Weight(files=self.files + other.files, bytes=self.bytes + other.bytes)


def weigh(root: Path, path: str) -> Weight:
    """A file or directory `path` below `root`. What cannot be looked at, and what no symlink leads to, weighs nothing:
    this refuses nothing, which is left to who keeps it.
    """
    names = [name for name in os.path.normpath(path).split("/") if name not in {"", "."}]  # ".." as it is written
    if ".." in names:
        return Weight()
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return Weight()
    try:
        return _at(fd, names, MOST_ENTRIES)
    except OSError:
        return Weight()
    finally:
        os.close(fd)


def _at(folder: int, names: list[str], most: int) -> Weight:
    if not names:
        return _inside(folder, most, MOST_DEPTH)
    with looked_at(names[0], folder) as (found, status):
        if stat.S_ISDIR(status.st_mode):
            with reading(found) as fd:
                return _at(fd, names[1:], most)
        if stat.S_ISREG(status.st_mode) and len(names) == 1:
            return Weight(files=1, bytes=status.st_size)
    return Weight()


def _inside(folder: int, most: int, depth: int) -> Weight:
    found, below = Weight(), list[str]()
    with os.scandir(folder) as entries:
        for entry in entries:
            most -= 1
            if most < 0:
                break
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.name)
            elif entry.is_file(follow_symlinks=False):
                found += Weight(files=1, bytes=entry.stat(follow_symlinks=False).st_size)
    for name in below if depth else ():
        with looked_at(name, folder) as (path_fd, status):
            if stat.S_ISDIR(status.st_mode):
                with reading(path_fd) as fd:
                    found += _inside(fd, most - found.files, depth - 1)
    return found
