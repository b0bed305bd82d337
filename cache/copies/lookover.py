"""What a copy looks like from outside: what it counts, and a stamp by which any later change of it is seen.

A stamp is made of inode, size, mode and times. A file system sets a file's ctime by itself at each change, of the bytes
as of all else, and lets nobody set it back: so what has its stamp still has the bytes that were verified when it was
made. What this cannot see is a disk that gives other bytes than were written to it, and, on file systems whose clock
ticks slowly, a change in the few milliseconds after the copy was made.

    file    1:<hash>
    tree    <things in it>:<hash of the directory itself>:<hash of all in it>

Of directories ctime and mode are left out, which change when a tree is given its name.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from ..shelf import charge

MOST_AT_A_HIT = 256
"""Things in a tree that are looked at on each use: under a millisecond. Of a larger one, its top directory only."""


@dataclass(frozen=True, slots=True)
class Look:
    """bytes: what it counts."""

    bytes: int
    stamp: str


def look_over(path: Path) -> Look:
    """All of a copy, one lstat a thing. OSError."""
    top = os.lstat(path)
    if not stat.S_ISDIR(top.st_mode):
        return Look(charge(top.st_size), f"1:{_hash([_plain('', top)])}")
    total, seen, todo = charge(0), list[str](), [""]
    while todo:
        folder = todo.pop()
        with os.scandir(f"{path}/{folder}") as entries:
            for entry in entries:
                name, status = folder + entry.name, entry.stat(follow_symlinks=False)
                is_folder = stat.S_ISDIR(status.st_mode)
                if is_folder:
                    todo.append(f"{name}/")
                total += charge(status.st_size if stat.S_ISREG(status.st_mode) else 0)
                seen.append(_folder(name, status) if is_folder else _plain(name, status))
    return Look(total, f"{len(seen)}:{_hash([_folder('', top)])}:{_hash(sorted(seen))}")


def still_is(path: Path, stamp: str, *, most: int = MOST_AT_A_HIT) -> bool:
    """Whether a copy has this stamp, as far as looking at so many things shows. OSError: it is not there at all."""
    things, _, rest = stamp.partition(":")
    if things.isdigit() and int(things) <= most:
        return look_over(path).stamp == stamp
    return rest.partition(":")[0] == _hash([_folder("", os.lstat(path))])


def _plain(name: str, status: os.stat_result) -> str:
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{os.fsencode(name)!r}:{status.st_mode}:{status.st_ino}:{status.st_size}:{times}"


def _folder(name: str, status: os.stat_result) -> str:
    return f"{os.fsencode(name)!r}:{stat.S_IFMT(status.st_mode)}:{status.st_ino}:{status.st_mtime_ns}"


def _hash(lines: list[str]) -> str:
    return blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
