"""Inputs that the job may change: the copy that others see stays as it is, and the changes are the attempt's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from batchyard.broker.errors import InputError
from batchyard.cache.remote.body import check_room

from .engine import Bind, overlay

_CLONED_BYTES = 1 << 30


def writable(binds: Sequence[Bind], folder: Path, user: str | None) -> tuple[Bind, ...]:
    """Each bind that is not read-only gets something of its own in `folder`, which begins empty: a directory a layer of
    changes, a file a copy. The others stay.

    user: "uid[:gid]" of the job, None: the image's, whoever that is. Raises InputError, StartError, DiskFull, OSError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    return tuple(bind if bind.read_only else _own(bind, folder / str(n), _owner(user)) for n, bind in enumerate(binds))


def _own(bind: Bind, place: Path, owner: tuple[int, int] | None) -> Bind:
    source = Path(bind.source)
    if not source.stat().st_mode & 0o004:
        raise InputError(f'input "{bind.target}": not everybody may read {source}, so it is not given out writable')
    if source.is_dir():
        overlay.prepare(source, place, owner)
        return replace(bind, changes=str(place))
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _copy(source, place, owner)
    return replace(bind, source=str(place))


def _copy(source: Path, place: Path, owner: tuple[int, int] | None) -> None:
    """Shares the bytes with the source where the disk can do that."""
    status = source.stat()
    check_room(place.parent, status.st_size, str(source))
    with source.open("rb") as opened, place.open("xb") as made:
        try:
            while os.copy_file_range(opened.fileno(), made.fileno(), _CLONED_BYTES):
                pass
        except OSError:  # not between these two disks
            opened.seek(0)
            made.seek(0)
            made.truncate()
            shutil.copyfileobj(opened, made, 1 << 20)
        if owner is not None:
            os.fchown(made.fileno(), *owner)
        mode = 0o666 if owner is None else 0o644
        os.fchmod(made.fileno(), mode | (0o111 if status.st_mode & 0o111 else 0))


def _owner(user: str | None) -> tuple[int, int] | None:
    if user is None:
        return None
    uid, _, gid = user.partition(":")
    return int(uid), int(gid or uid)
