"""Whether all of a blob is still in the store: of a tree, also what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

from batchyard.broker.errors import IntegrityError, NotFound

from .digest import Blob
from .parts import parts_of
from .sealed import BlobStore

_AT_ONCE = 8
Use: TypeAlias = Callable[[Sequence[str]], Collection[str]]
"""Hears the names of objects that somebody needs from now on; gives those that cannot be kept any more."""


def all_there(blobs: BlobStore, wanted: Iterable[Blob], *, use: Use = lambda names: ()) -> bool:
    """Whether the durable store has every part of these blobs; says nothing of the content of files.

    use: told of all that is needed before it is looked, so that it is not deleted meanwhile. InputError: a tree that is
    none. StoreUnavailable.
    """
    try:
        digests = {part for blob in wanted for part in parts_of(blobs, blob.digest, blob.kind)}
    except (NotFound, IntegrityError):  # of a tree
        return False
    if use(sorted(map(blobs.name, digests))):
        return False
    if len(digests) <= 1:
        return all(map(blobs.has, digests))
    with ThreadPoolExecutor(min(_AT_ONCE, len(digests)), thread_name_prefix="look") as pool:
        try:
            return all(pool.map(blobs.has, digests))
        finally:
            pool.shutdown(cancel_futures=True)
