"""Blobs put together as one directory of this node, which is kept like any other copy of a tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from batchyard.broker.errors import InputError

from .copies import LocalCopies
from .digest import Blob, digest_of
from .folder import tree_charge
from .manifest import BadEntry, Directory, Entry, File, Symlink, encode
from .tree import build_tree, read_tree

AT_ONCE = 8


def stage_gathered(
    copies: LocalCopies, members: Mapping[str, Blob], name: str, owner: str, *, stopped: Callable[[], bool]
) -> Path:
    """The directory, pinned for the owner: a folder for each member by its key, in it a file `name`, or what is in a
    tree. Raises InputError, and what staging a tree raises.
    """
    entries: list[Entry] = []
    for folder, blob in members.items():
        if stopped():
            raise InputError("it was not staged: the job was told to stop")
        entries.append(Directory(path=folder))
        if blob.kind == "file":
            entries.append(File(path=f"{folder}/{name}", digest=blob.digest, size=blob.size, executable=False))
        else:
            entries += [_below(folder, entry) for entry in read_tree(copies.blobs, blob.digest)]
    try:
        manifest = encode(entries)
    except BadEntry as error:
        raise InputError(f"the outputs together cannot be a directory: {error}") from None
    digest, charged = digest_of(manifest), tree_charge(entries)
    if (found := copies.find("tree", digest, owner)) is not None:
        return found
    with copies.landing("tree", charged) as path:
        build_tree(copies.blobs, tuple(entries), path, at_once=AT_ONCE, stopped=stopped)
        return copies.adopt("tree", digest, path, charged, owner)


def _below(folder: str, entry: Entry) -> Entry:
    path = f"{folder}/{entry.path}"
    match entry:
        case Directory():
            return Directory(path=path)
        case File():
            return File(path=path, digest=entry.digest, size=entry.size, executable=entry.executable)
        case Symlink():
            return Symlink(path=path, target=entry.target)
