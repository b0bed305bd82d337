"""What of a directory a pattern means, and how many bytes that is; nothing is read but names, kinds and sizes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

from batchyard.broker.errors import OutputError
from batchyard.broker.globs import At, Pattern

from .beneath import looked_at, reading
from .manifest import MOST_DEPTH, MOST_ENTRIES


@dataclass(slots=True, kw_only=True)
class Matched:
    """paths: what was matched, and the directories that it lies in. found: there is something, or it may be empty.

    size: bytes of all its files.
    """

    paths: set[str] = field(default_factory=set)
    found: bool = False
    size: int = 0


def matched(folder: int, pattern: Pattern) -> Matched:
    """In an open directory. Follows no symlink; a directory that matches is meant with all that is in it.

    OutputError: too much, too deep, unreadable.
    """
    made = Matched(found=pattern.matches(pattern.start))
    _walk(folder, "", pattern, None if made.found else pattern.start, made)
    made.found = made.found or bool(made.paths)
    return made


def _walk(folder: int, prefix: str, pattern: Pattern, at: At | None, made: Matched) -> bool:
    """Whether something in it is meant. at: where the pattern is; None: all in it is meant."""
    if prefix.count("/") > MOST_DEPTH:
        raise OutputError(f"{prefix[:200]!r} is too deep; publish it as an archive")
    before = len(made.paths)
    try:
        for name in os.listdir(folder):
            below = None if at is None else pattern.below(at, name)
            if below is None or below:
                _look(folder, prefix + name, name, pattern, below, made)
    except OSError as error:
        raise OutputError(f"{prefix[:200] or '.'!r} cannot be read: {error.strerror}") from error
    return len(made.paths) > before


def _look(folder: int, path: str, name: str, pattern: Pattern, at: At | None, made: Matched) -> None:
    meant = at is None or pattern.matches(at)
    with looked_at(name, folder) as (found, status):
        if stat.S_ISDIR(status.st_mode):
            with reading(found) as fd:
                meant = _walk(fd, path + "/", pattern, None if meant else at, made) or meant
        elif meant and stat.S_ISREG(status.st_mode):
            made.size += status.st_size
    if meant:
        made.paths.add(path)
    if len(made.paths) > MOST_ENTRIES:
        raise OutputError(f"it has more than {MOST_ENTRIES} entries; publish it as an archive")
