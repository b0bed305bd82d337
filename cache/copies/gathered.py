"""Blobs put together as one directory of this node, which is kept like any other copy of a tree."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from batchyard.broker.errors import InputError

from ..digest import Blob, Digest, digest_of
from ..manifest import MOST_ENTRIES, BadEntry, Directory, Entry, File, Symlink, Tree, check, in_order
from ..packs import Pack, Place
from ..tree import AT_ONCE, build_tree, read_tree
from .flight import Flight, OnMoved
from .folder import tree_charge
from .local import LocalCopies


def stage_gathered(
    copies: LocalCopies,
    members: Mapping[str, Blob],
    name: str,
    owner: str,
    *,
    stopped: Callable[[], bool],
    on_moved: OnMoved | None = None,
) -> Path:
    """The directory, pinned for the owner: a folder for each member by its key, in it a file `name`, or what is in a
    tree. Raises InputError, and what staging a tree raises.
    """
    digest = _identity(members, name)
    if (found := copies.find("tree", digest, owner)) is not None:
        return found
    gathering = _Gathering()
    for folder, blob in members.items():
        if stopped():
            raise InputError("it was not staged: the job was told to stop")
        if blob.kind == "file":
            gathering.add_file(folder, name, blob)
        else:
            gathering.add_tree(folder, read_tree(copies.blobs, blob.digest))
        gathering.check_size()
    tree = gathering.tree()
    charged, flight = tree_charge(tree.entries), Flight()
    flight.join(on_moved)
    flight.expect(tree.size)
    with copies.landing("tree", charged) as path:
        build_tree(copies.blobs, tree, path, flight.more, at_once=AT_ONCE, stopped=stopped)
        return copies.adopt("tree", digest, path, charged, owner)


def _identity(members: Mapping[str, Blob], name: str) -> Digest:
    """What such a directory is kept by: its members' digests say all that is in it. No manifest has these bytes."""
    listed = {folder: [blob.kind, blob.digest, blob.size] for folder, blob in members.items()}
    return digest_of(json.dumps({"batchyard_gathered": 1, "name": name, "members": listed}, sort_keys=True).encode())


class _Gathering:
    """Entries of several trees as one. A pack that more than one of them has is one: it is fetched once."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._packs: dict[Pack, int] = {}

    def add_file(self, folder: str, name: str, blob: Blob) -> None:
        self._entries += [Directory(path=folder), File(path=f"{folder}/{name}", digest=blob.digest, size=blob.size)]

    def add_tree(self, folder: str, tree: Tree) -> None:
        numbers = [self._packs.setdefault(pack, len(self._packs)) for pack in tree.packs]
        self._entries.append(Directory(path=folder))
        for entry in tree.entries:
            path = f"{folder}/{entry.path}"
            match entry:
                case Directory():
                    self._entries.append(Directory(path=path))
                case File():
                    place = entry.place and Place(pack=numbers[entry.place.pack], at=entry.place.at)
                    self._entries.append(replace(entry, path=path, place=place))
                case Symlink():
                    self._entries.append(Symlink(path=path, target=entry.target))

    def check_size(self) -> None:
        """InputError: it is too much already, so that no more of it is read into memory."""
        if len(self._entries) > MOST_ENTRIES:
            raise InputError(
                f"the outputs together have more than {MOST_ENTRIES} entries, which is the most that a directory has; "
                "name fewer of them, or let each child put its files into an archive"
            )

    def tree(self) -> Tree:
        """InputError: together they are no directory."""
        entries = tuple(sorted(self._entries, key=in_order))
        try:
            check(entries)
        except BadEntry as error:
            raise InputError(f"the outputs together cannot be a directory: {error}") from None
        return Tree(entries=entries, packs=tuple(self._packs))
