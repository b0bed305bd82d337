"""Where a node keeps copies in memory: a folder of its own below /dev/shm.

    /dev/shm/batchyard-<hash of the state folder's path>/{owner,lock,boot,file/,tree/,trash/}

Anybody may make folders in /dev/shm, so one is used only if it is ours alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

from batchyard.broker.errors import BatchyardError
from batchyard.cache.copies.folder import Folder
from batchyard.cache.tree import remove_tree

log = logging.getLogger(__name__)
SHM = Path("/dev/shm")
_PREFIX = "batchyard-"
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def default_mib() -> int:
    """A sixteenth of the machine's memory, and at most a quarter of what /dev/shm may hold.

    0 in a container: the engine could not bind from its /dev/shm, which is not the host's.
    """
    if any(mark.exists() for mark in _CONTAINER_MARKS):
        return 0
    try:
        shm = os.statvfs(SHM)
    except OSError:
        return 0
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine // 16, shm.f_blocks * shm.f_frsize // 4) >> 20


def folder_of(state: Path, shm: Path = SHM) -> Path:
    """The folder of the node with this state folder."""
    return shm / (_PREFIX + hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:24])


def open_folder(state: Path, limit_bytes: int, shm: Path = SHM) -> Folder | None:
    """The node's folder; None, and the log says why, where there can be none."""
    _sweep(shm)
    root = folder_of(state, shm)
    try:
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        if not _ours(root):
            log.warning("no copies are kept in memory: %s is somebody else's", root)
            return None
        (root / "owner").write_bytes(os.fsencode(state.resolve()))
        return Folder(root, limit_bytes, place="memory")
    except (OSError, BatchyardError) as error:
        log.warning("no copies are kept in memory: %s", error)
        return None


def remove_folder(state: Path, shm: Path = SHM) -> None:
    """Frees the memory of a node that does not run, for one that will not run again."""
    root = folder_of(state, shm)
    if root.exists() and _ours(root):
        remove_tree(root)


def _ours(root: Path) -> bool:
    found = os.lstat(root)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _sweep(shm: Path) -> None:
    """What nodes left whose state folder is gone."""
    for root in shm.glob(_PREFIX + "*"):
        with suppress(OSError):
            if not _ours(root) or Path(os.fsdecode((root / "owner").read_bytes())).exists():
                continue
            lock = os.open(root / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(root)
            finally:
                os.close(lock)
