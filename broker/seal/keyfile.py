"""The key file: JSON of mode 0600, written whole or not at all."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from ..errors import InvalidConfig
from .key import Keys

_MOST_CHARACTERS = 1 << 20


def load(path: Path) -> Keys | None:
    """The keys in a file, None if there is none. InvalidConfig: damaged, or others than its owner may touch it."""
    text = _read(path)
    return None if text is None else Keys.loads(text, _called(path))


def write_new(path: Path, keys: Keys) -> bool:
    """Make a key file that is there whole or not at all; whether it was made, and not there before."""
    return _write(path, keys, replace=False)


def change(path: Path, changed: Callable[[Keys], Keys]) -> Keys:
    """Give the file other keys, made of what it holds. InvalidConfig: it is missing, or as for `load`."""
    found(path)  # says what is wrong before anything is locked
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two changes at once must not lose one of the new keys
        keys = changed(found(path))
        _write(path, keys, replace=True)
    finally:
        os.close(folder)
    return keys


def found(path: Path) -> Keys:
    """The keys in a file. InvalidConfig: it is missing, or as for `load`."""
    keys = load(path)
    if keys is None:
        raise InvalidConfig(f"{_called(path)} is missing; create one, or name the one that this yard uses")
    return keys


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What differs once the file was changed; None: it cannot be looked at."""
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_mtime_ns, there.st_ino, there.st_size


def _called(path: Path) -> str:
    return f'key file "{path}"'


def _read(path: Path) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise InvalidConfig(f"{_called(path)} is not a file")
            if mode & 0o077:
                shown = stat.S_IMODE(mode)
                raise InvalidConfig(f'{_called(path)} has mode {shown:04o}, open to others; run chmod 600 "{path}"')
            return file.read(_MOST_CHARACTERS)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidConfig(f"{_called(path)} cannot be read: {error.strerror}") from error


def _write(path: Path, keys: Keys, *, replace: bool) -> bool:
    try:
        return _put(path, keys.dumps(), replace=replace)
    except OSError as error:
        raise InvalidConfig(f"{_called(path)} cannot be written: {error.strerror}") from error


def _put(path: Path, text: str, *, replace: bool) -> bool:
    """Whether the text is the file's now; without `replace` it is not if there was one. Durable either way. Whose file
    it is stays: processes that run as its owner are to read it again.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    written = True
    try:
        with open(fd, "w", encoding="ascii") as file:
            if replace and ((was := path.stat()).st_uid, was.st_gid) != ((now := os.fstat(fd)).st_uid, now.st_gid):
                os.fchown(fd, was.st_uid, was.st_gid)
            file.write(text)
            file.flush()
            os.fsync(fd)
        if replace:
            os.replace(temporary, path)
        else:
            os.link(temporary, path)  # unlike a rename, refuses to replace
    except FileExistsError:
        written = False
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)  # also after losing: whoever made it may not have come so far
    finally:
        os.close(folder)
    return written
