"""An archive as a directory: all of it, or nothing and a reason.

Files get mode 0444, or 0555 if any execute bit is set; owners, times and all other bits are not kept. Directories that
the archive does not list are made for what is in them. Of files of one name the last one counts, as with `tar`; a name
that is a file and a directory is refused. Symlinks are made last, so that nothing is ever written through one, and must
not lead out, through whatever other symlinks; they may lead to nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchyard.broker.errors import InputError

from ..manifest import MOST_DEPTH, MOST_ENTRIES
from ..newfile import local_disk
from ..shelf import charge
from .archive import Content, Member, bomb, members, most_bytes

_PIECE_BYTES = 1 << 18
_MOST_PATH_BYTES, _MOST_NAME_BYTES = 3000, 255
_MOST_STEPS, _MOST_HOPS = 4_000_000, 40  # as for trees


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What came out: files, directories and symlinks, the bytes in the files, and what all of it counts."""

    entries: int
    size: int
    charge: int


def unpack(archive: Path, top: Path, *, room: Callable[[int], None]) -> Unpacked:
    """Make the directory `top`, which must not exist, of what is in an archive.

    room: hears what `top` will count before so much is written; what it raises ends the work. InputError: the archive
    is none, is damaged, encrypted, hostile or too much. DiskFull, StoreUnavailable. `top` stays when it fails.
    """
    with local_disk(top):
        top.mkdir(mode=0o700)
    made = _Made(top, archive.stat().st_size, room)
    with members(archive) as found:
        for member, content in found:
            made.add(member, content)
    return made.end()


class _Made:
    """What was made so far, by path: the size of a file, the target of a symlink, None of a directory."""

    def __init__(self, top: Path, archive_bytes: int, room: Callable[[int], None]) -> None:
        self._top, self._archive_bytes, self._room = top, archive_bytes, room
        self._found: dict[str, int | str | None] = {}
        self._given = 0
        self._charge = charge(0)

    def add(self, member: Member, content: Content) -> None:
        path = _plain_path(member.path)
        if member.kind == "directory" and not path:
            return
        if not path:
            raise InputError(f"{_shown(member.path)} in it is not a name that a {member.kind} can have")
        self._folder(path.rpartition("/")[0])
        if member.kind == "directory":
            self._folder(path)
            return
        self._replace(path)
        match member.kind:
            case "file":
                self._write(path, member, content)
            case "hardlink":
                self._link(path, _plain_path(member.target))
            case _:
                self._count(path, 0)
                self._found[path] = member.target

    def end(self) -> Unpacked:
        """With the symlinks, which are known to lead nowhere else by then."""
        budget = [_MOST_STEPS]
        links = {path: target for path, target in self._found.items() if isinstance(target, str)}
        for path in links:
            _check_symlink(path, self._found, budget)
        with local_disk(self._top):
            for path, target in links.items():
                with _named_once(path):
                    os.symlink(target, self._top / path)
        size = sum(one for one in self._found.values() if isinstance(one, int))
        return Unpacked(entries=len(self._found), size=size, charge=self._charge)

    def _folder(self, path: str) -> None:
        """The directory, and those above it, unless they are there."""
        if not path or (path in self._found and self._found[path] is None):
            return
        if path in self._found:
            raise InputError(f"{_shown(path)} in it is a directory, and something else too")
        self._folder(path.rpartition("/")[0])
        self._count(path, 0)
        with local_disk(self._top), _named_once(path):
            (self._top / path).mkdir(mode=0o700)
        self._found[path] = None

    def _replace(self, path: str) -> None:
        """Make way for a later one of the same name."""
        if path not in self._found:
            return
        there = self._found[path]
        if there is None:
            raise InputError(f"{_shown(path)} in it is a directory, and something else too")
        if isinstance(there, int):
            with local_disk(self._top):
                (self._top / path).unlink()
        del self._found[path]
        self._charge -= charge(there if isinstance(there, int) else 0)

    def _count(self, path: str, size: int) -> None:
        if len(self._found) >= MOST_ENTRIES:
            raise InputError(f"it has more than {MOST_ENTRIES} entries")
        self._given += size
        if self._given > most_bytes(self._archive_bytes):
            raise bomb(self._given, self._archive_bytes)
        self._charge += charge(size)
        self._room(self._charge)

    def _write(self, path: str, member: Member, content: Content) -> None:
        self._count(path, member.size)
        with local_disk(self._top), _named_once(path):
            fd = os.open(self._top / path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            left = member.size
            while left:
                piece = content.read(min(left, _PIECE_BYTES))
                if not piece:
                    raise InputError(f"it is damaged or cut short: {_shown(path)} in it lacks {left} bytes")
                left -= len(piece)
                _write_all(fd, piece, self._top)
            if content.read(1):  # the end is also where a zip's checksum is compared
                raise InputError(f"it is damaged: {_shown(path)} in it has more bytes than it says")
            with local_disk(self._top):
                os.fchmod(fd, 0o555 if member.executable else 0o444)
        finally:
            os.close(fd)
        self._found[path] = member.size

    def _link(self, path: str, target: str) -> None:
        size = self._found.get(target)
        if not isinstance(size, int):
            raise InputError(f"{_shown(path)} in it is a hard link to {_shown(target)}, which is no file before it")
        self._count(path, size)
        with local_disk(self._top), _named_once(path):
            try:
                os.link(self._top / target, self._top / path, follow_symlinks=False)
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                raise InputError(f"it has more hard links to {_shown(target)} than this node's disk takes") from None
        self._found[path] = size


@contextmanager
def _named_once(path: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:  # a file system for which two names are one
        raise InputError(f"this node's file system takes {_shown(path)} in it for the name of something else") from None


def _write_all(fd: int, piece: bytes, top: Path) -> None:
    view = memoryview(piece)
    with local_disk(top):
        while view:
            view = view[os.write(fd, view) :]


def _shown(path: str) -> str:
    return repr(path[:200])


def _plain_path(path: str) -> str:
    """Without `./` and doubled or final slashes; "" is the top itself. InputError: no archive may name that."""
    if path.startswith("/"):
        raise InputError(f"{_shown(path)} in it is an absolute path")
    names = [name for name in path.split("/") if name not in ("", ".")]
    if ".." in names:
        raise InputError(f'{_shown(path)} in it contains ".."')
    try:
        longest = max((len(os.fsencode(name)) for name in names), default=0)
        whole = len(os.fsencode(path))
    except UnicodeEncodeError:
        longest = whole = _MOST_PATH_BYTES + 1
    if longest > _MOST_NAME_BYTES or whole > _MOST_PATH_BYTES or len(names) > MOST_DEPTH or "\0" in path:
        raise InputError(f"{_shown(path)} in it is not a name that a file here can have, or is too deep")
    return "/".join(names)


def _check_symlink(path: str, found: Mapping[str, int | str | None], budget: list[int]) -> None:
    """Walk as the kernel would. Beyond what is not there it leads to nothing, also not out."""
    here, hops = path.split("/")[:-1], 0
    first = found[path]
    assert isinstance(first, str)
    todo = _target_names(path, first)
    while todo:
        budget[0] -= 1
        if budget[0] < 0:
            raise InputError("its symlinks take too long to follow")
        name = todo.pop()
        if name == "..":
            if not here:
                raise InputError(f"{_shown(path)} in it is a symlink to {_shown(first)}, which leads out of it")
            here.pop()
            continue
        at = "/".join([*here, name])
        there = found.get(at)
        if isinstance(there, str):
            hops += 1
            if hops > _MOST_HOPS:
                raise InputError(f"{_shown(path)} in it is a symlink that leads to itself")
            todo += _target_names(at, there)
        else:
            here.append(name)  # also where nothing is: a later ".." then takes it back, which never leads further out


def _target_names(path: str, target: str) -> list[str]:
    """The components of the target, last first."""
    try:
        length = len(os.fsencode(target))
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= _MOST_PATH_BYTES or "\0" in target:
        raise InputError(f"{_shown(path)} in it is a symlink to what is not a path")
    if target.startswith("/"):
        raise InputError(f"{_shown(path)} in it is a symlink to {_shown(target)}, which leads out of it")
    return [name for name in target.split("/")[::-1] if name not in ("", ".")]
