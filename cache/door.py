"""The blob store as the command line and the client use it (entry point group `batchyard.blobs`)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from batchyard.broker.blobs import Lines
from batchyard.broker.errors import InputError, NotFound
from batchyard.broker.seal import KeyRing

from .disk import DirectoryStore
from .manifest import is_manifest
from .sealed import BlobStore
from .tree import fetch_tree, put_tree

_HEAD_BYTES = 64
_FILE_MODE = 0o644


class Door:
    """Files and directories in and out of a store."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def put(self, path: Path) -> dict[str, Any]:
        """Keep a file or directory, durable when it returns. InputError, OutputError, IntegrityError, DiskFull."""
        blob = put_tree(self._blobs, path) if path.is_dir() else self._blobs.put_file(path)
        return blob.as_json()

    def get(self, digest: str, path: Path) -> str:
        """Write a blob to `path`, whole or not at all; its kind. InputError: the path exists, or has no folder."""
        if path.exists() or path.is_symlink():
            raise InputError(f'"{path}" exists already; choose another place')
        if not path.parent.is_dir():
            raise InputError(f'the folder "{path.parent}" does not exist; make it first')
        with self._blobs.open(digest) as stream:
            tree = is_manifest(stream.read(_HEAD_BYTES))
        if tree:
            fetch_tree(self._blobs, digest, path)
            return "tree"
        self._blobs.fetch(digest, None, path, _FILE_MODE)
        return "file"

    def open(self, digest: str) -> AbstractContextManager[Lines]:
        """The blob as a stream; IntegrityError at its end if it is not whole."""
        return self._blobs.open(digest)


def open_store(store: str, ring: KeyRing, *, create: bool = False) -> Door:
    """The directory store at a path. NotFound: there is none, and it is not to be made."""
    path = Path(store)
    if not create and not (path / "objects").is_dir():
        raise NotFound(f'there is no blob store at "{path}"; correct --store')
    return Door(BlobStore(DirectoryStore(path), ring))
