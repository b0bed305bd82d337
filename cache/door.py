"""The blob store as the command line and the client use it (entry point group `batchyard.blobs`)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from batchyard.broker.blobs import Lines
from batchyard.broker.errors import InputError
from batchyard.broker.seal import KeyRing

from .excerpt import fetch_excerpt
from .manifest import Directory, Entry, File, Symlink, is_manifest
from .rewrap import Rewrap
from .sealed import BeforePut, BlobStore, OnBytes
from .stores.place import store_at
from .tree import fetch_tree, put_tree, read_tree

_HEAD_BYTES = 64
_FILE_MODE = 0o644


class Door:
    """Files and directories in and out of a store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def of(self, tenant: str) -> Door:
        """One tenant's files and directories."""
        return Door(self._blobs.of(tenant))

    def rewrap(self) -> Rewrap:
        """The rotation of keys in this store, of all tenants; see `blobs.Rewrapping`."""
        return self._blobs.rewrap()

    def put(
        self, path: Path, *, on_bytes: OnBytes | None = None, before_put: BeforePut | None = None
    ) -> dict[str, Any]:
        """Keep a file or directory, durable when it returns. InputError, OutputError, IntegrityError, DiskFull."""
        blobs = self._blobs if before_put is None else self._blobs.telling(before_put)
        blob = put_tree(blobs, path, on_bytes) if path.is_dir() else blobs.put_file(path, on_bytes)
        return blob.as_json()

    def get(self, digest: str, path: Path, *, part: str = "", on_bytes: OnBytes | None = None) -> str:
        """Write a blob, or what a tree has at `part`, to `path`, whole or not at all; its kind.

        InputError: the path exists, or has no folder. NotFound: the tree has no such part.
        """
        if path.exists() or path.is_symlink():
            raise InputError(f'"{path}" exists already; choose another place')
        if not path.parent.is_dir():
            raise InputError(f'the folder "{path.parent}" does not exist; make it first')
        part = part.strip("/")
        with self._blobs.open(digest) as stream:
            tree = is_manifest(stream.read(_HEAD_BYTES))
        if part and not tree:
            raise InputError(f"blob {digest} is a file and has no parts; leave out {part[:200]!r}")
        if part:
            return fetch_excerpt(self._blobs, digest, part, path, on_bytes)
        if tree:
            fetch_tree(self._blobs, digest, path, on_bytes)
            return "tree"
        self._blobs.fetch(digest, None, path, _FILE_MODE, on_bytes)
        return "file"

    def look(self, digest: str) -> dict[str, Any]:
        """Kind, size of the content in bytes, and a tree's entries in order of their paths; see `Blobs.look`."""
        with self._blobs.open(digest) as stream:
            tree, size = is_manifest(stream.read(_HEAD_BYTES)), stream.raw.size
        if not tree:
            return {"digest": digest, "kind": "file", "size": size, "entries": []}
        found = read_tree(self._blobs, digest)
        entries = [_shown(entry) for entry in found.entries]
        return {"digest": digest, "kind": "tree", "size": found.size, "entries": entries}

    def open(self, digest: str) -> AbstractContextManager[Lines]:
        """The blob as a stream; IntegrityError at its end if it is not whole."""
        return self._blobs.open(digest)


def _shown(entry: Entry) -> dict[str, Any]:
    """As `Blobs.look` gives it. mode: what `get` of the tree gives the file or directory."""
    path = entry.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    match entry:
        case File():
            mode = "0555" if entry.executable else "0444"
            return {"path": path, "type": "file", "mode": mode, "size": entry.size, "digest": entry.digest}
        case Directory():
            return {"path": path, "type": "directory", "mode": "0755"}
        case Symlink():
            target = entry.target.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            return {"path": path, "type": "symlink", "mode": "0777", "target": target}


def open_store(store: str, ring: KeyRing, *, create: bool = False) -> Door:
    """The store of a spec, as `store_at` has it."""
    return Door(BlobStore(store_at(store, create=create), ring))
