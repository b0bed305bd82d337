"""What a blob is made of."""

from __future__ import annotations

from .digest import Digest, Kind
from .manifest import is_manifest
from .sealed import BlobStore
from .tree import read_tree

_HEAD_BYTES = 64


def parts_of(blobs: BlobStore, digest: Digest, kind: Kind | None = None) -> list[Digest]:
    """The blob itself and, of a tree, all blobs that it names: who keeps it keeps these. kind: where it is known, else
    the content tells. InputError: a tree that is none. Else as `BlobStore.read_bytes`.
    """
    if (kind or _kind_of(blobs, digest)) == "file":
        return [digest]
    return [digest, *read_tree(blobs, digest).blobs]


def _kind_of(blobs: BlobStore, digest: Digest) -> Kind:
    with blobs.open(digest) as stream:
        return "tree" if is_manifest(stream.read(_HEAD_BYTES)) else "file"
