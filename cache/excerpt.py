"""One file or directory out of a tree, without the rest of it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from batchyard.broker.errors import InputError, NotFound

from .digest import Digest, Kind
from .manifest import BadEntry, File, Symlink, Tree, check
from .newfile import new_file
from .sealed import BlobStore, OnBytes
from .tree import build_tree, read_tree

_MODE, _MODE_OF_EXECUTABLES = 0o644, 0o755


def fetch_excerpt(blobs: BlobStore, digest: Digest, path: str, dest: Path, on_bytes: OnBytes | None = None) -> Kind:
    """Write what a tree has at `path` to `dest`, whole or not at all; the parent of `dest` must exist.

    A directory as `fetch_tree` does it; a file gets mode 0644, or 0755 if executable. Only what is needed is read.
    InputError: `dest` exists. Else as `excerpt` and `fetch_tree`.
    """
    tree = read_tree(blobs, digest)
    if os.path.lexists(dest):
        raise InputError(f'"{dest}" exists already; choose another place')
    found = excerpt(tree, path, digest)
    if isinstance(found, Tree):
        build_tree(blobs, found, dest, on_bytes)
        return "tree"
    mode = _MODE_OF_EXECUTABLES if found.executable else _MODE
    if found.place is None and not found.is_empty:
        blobs.fetch(found.digest, found.size, dest, mode, on_bytes)
        return "file"
    data = _packed(blobs, tree, found)
    with new_file(dest.parent) as new:
        new.write(data)
        new.replace(dest, mode)
    if on_bytes is not None:
        on_bytes(found.size)
    return "file"


def _packed(blobs: BlobStore, tree: Tree, file: File) -> memoryview:
    if file.place is None:
        return memoryview(b"")
    pack = tree.packs[file.place.pack]
    return blobs.read_sized(pack.digest, pack.size)[file.place.at :][: file.size]


def excerpt(tree: Tree, path: str, digest: Digest) -> Tree | File:
    """What a tree has at a path: a file, or a directory as a tree. digest: the tree's, for messages.

    NotFound: it has nothing there. InputError: a symlink, or a directory with one that leads out of it.
    """
    entry = next((entry for entry in tree.entries if entry.path == path), None)
    if entry is None:
        raise NotFound(f"tree {digest} has no {path[:200]!r}; `batchyard ls` of it lists what it has")
    if isinstance(entry, Symlink):
        what = f"{path[:200]!r} of tree {digest} is a symlink to {entry.target[:200]!r}"
        raise InputError(f"{what}; name that, or get the whole tree")
    if isinstance(entry, File):
        return entry
    inside = f"{path}/"
    beneath = tuple(replace(one, path=one.path[len(inside) :]) for one in tree.entries if one.path.startswith(inside))
    try:
        check(beneath)
    except BadEntry as error:
        raise InputError(f"{path[:200]!r} of tree {digest} is no tree by itself: {error}; get the whole one") from None
    return Tree(entries=beneath, packs=tree.packs)
