"""What a blob is made of."""

from __future__ import annotations

from .digest import Digest
from .manifest import is_manifest
from .sealed import BlobStore
from .tree import read_tree

_HEAD_BYTES = 64


def parts_of(blobs: BlobStore, digest: Digest) -> list[Digest]:
    """The blob itself and, of a tree, all blobs that it names: who keeps it keeps these. As `BlobStore.read_bytes`."""
    with blobs.open(digest) as stream:
        tree = is_manifest(stream.read(_HEAD_BYTES))
    if not tree:
        return [digest]
    return [digest, *read_tree(blobs, digest).blobs]
