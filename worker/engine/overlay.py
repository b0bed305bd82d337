"""Directories that a container may change while they stay as they are: a layer of changes over each (overlayfs).

    <folder>/upper/…   what differs: at first every directory and file, as the job's own, without a byte of content
    <folder>/work      the kernel's

A file in the layer that has nothing but an owner and a mode of its own shows the content of the one below
(`metacopy`), so that a directory of any size costs an inode for each thing in it, and no copy before it is written.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from batchyard.broker.errors import DiskFull, StartError, disk_full

METACOPY = "trusted.overlay.metacopy"
_CANNOT = (errno.EPERM, errno.EOPNOTSUPP, errno.EACCES)


def prepare(source: Path, folder: Path, owner: tuple[int, int] | None) -> None:
    """Make `folder`, which must not exist, the layer of changes for `source`.

    owner: uid and gid of whoever may change it; None: anybody may. What not everybody may read in `source` stays as it
    is, and so do symlinks. StartError: this node cannot do that. DiskFull. OSError: `source` cannot be read.
    """
    try:
        (folder / "work").mkdir(parents=True, mode=0o700)
        _layer(source, folder / "upper", owner)
    except OSError as error:
        if disk_full(error):
            raise DiskFull(f"no space left for a writable {source}: {error.strerror}") from error
        if error.errno not in _CANNOT:
            raise
        raise StartError(
            f"this node cannot give out a writable directory: {error.strerror} in {folder}; run it as root, with "
            "--state on a disk such as ext4 or xfs, or leave out writable"
        ) from error


def mount_options(source: str, folder: str) -> str:
    """StartError: a path cannot stand in them."""
    for path in (source, folder):
        if set(path) & set(",:\\"):
            raise StartError(f'"{path}" cannot be made writable for its "," ":" or "\\"; give the node another --state')
    return f"lowerdir={source},upperdir={folder}/upper,workdir={folder}/work,metacopy=on"


def _layer(source: Path, upper: Path, owner: tuple[int, int] | None) -> None:
    todo = [(str(source), str(upper))]
    _directory(str(upper), owner)
    while todo:
        below, above = todo.pop()
        with os.scandir(below) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                mode = status.st_mode
                target = f"{above}/{entry.name}"
                if stat.S_ISDIR(mode) and mode & 0o005 == 0o005:
                    _directory(target, owner)
                    todo.append((entry.path, target))
                elif stat.S_ISREG(mode) and mode & 0o004:
                    _file(status, target, owner)


def _directory(above: str, owner: tuple[int, int] | None) -> None:
    os.mkdir(above)
    if owner is not None:
        os.chown(above, *owner)
    os.chmod(above, 0o777 if owner is None else 0o755)


def _file(below: os.stat_result, above: str, owner: tuple[int, int] | None) -> None:
    fd = os.open(above, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if below.st_size:
            os.ftruncate(fd, below.st_size)
            os.setxattr(fd, METACOPY, b"")
        if owner is not None:
            os.fchown(fd, *owner)
        mode = 0o666 if owner is None else 0o644
        os.fchmod(fd, mode | (0o111 if below.st_mode & 0o111 else 0))
        os.utime(fd, ns=(below.st_atime_ns, below.st_mtime_ns))
    finally:
        os.close(fd)
