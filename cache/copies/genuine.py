"""Whether a copy of which nobody knows any more what it looked like is what its digest says."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from batchyard.broker.errors import InputError, IntegrityError, NotFound

from ..digest import Digest
from ..manifest import Directory, Entry, File, Symlink
from ..sealed import BlobStore
from ..tree import read_tree
from .folder import CopyKind


def is_genuine(blobs: BlobStore, kind: CopyKind, digest: Digest, path: Path) -> bool:
    """By reading all of it. False also of what was unpacked, and of a directory that no manifest in the store has in
    it. StoreUnavailable.
    """
    try:
        if kind == "file":
            return _has(path, digest, 0o444)
        return kind == "tree" and path.is_dir() and _holds(path, read_tree(blobs, digest).entries)
    except (InputError, IntegrityError, NotFound, OSError):
        return False


def _holds(path: Path, entries: tuple[Entry, ...]) -> bool:
    """Whether a directory has these entries and nothing else."""
    there = {
        os.path.relpath(f"{folder}/{name}", path)
        for folder, folders, files in os.walk(path)
        for name in (*folders, *files)
    }
    return there == {entry.path for entry in entries} and all(_is(path / entry.path, entry) for entry in entries)


def _is(path: Path, entry: Entry) -> bool:
    match entry:
        case Directory():
            return os.lstat(path).st_mode == stat.S_IFDIR | 0o555
        case Symlink():
            return path.is_symlink() and os.readlink(path) == entry.target
        case File():
            return _has(path, entry.digest, 0o555 if entry.executable else 0o444)


def _has(path: Path, digest: Digest, mode: int) -> bool:
    if os.lstat(path).st_mode != stat.S_IFREG | mode:
        return False
    with path.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}" == digest
