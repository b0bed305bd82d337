"""Small files of a tree put together as packs, each a blob of some MiB.

An object costs client and server some 4 CPU ms however small it is, and 5 ms a MiB besides: a file of 64 KiB pays 12
times what its bytes cost, one of 256 KiB 4 times, and from there on it is worth having as a blob of its own, which
other trees and jobs share. In a pack of 8 MiB or more that is a tenth of what the bytes cost, and less. A pack is read
and written whole, in memory.

Files are packed in the order of the tree, and equal ones once. Where a pack ends depends on the digest of its last
file: so a file that is new or gone changes the pack that it is in, perhaps the next, and no others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .digest import Digest

SMALL_BYTES = 256 << 10
"""The largest file that is packed."""
MOST_PACK_BYTES = 16 << 20
_LEAST_BYTES = 8 << 20
_SPREAD_BYTES = 4 << 20  # that a pack has on average beyond the least, but for those that end because they are full


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a small file lies: the number of the pack in its tree, and the offset in that."""

    pack: int
    at: int


class Packer:
    """Give it the small files of a tree in order, none of them empty, then `end`. keep: is given the bytes of each pack
    and the sum of the sizes of its files, and tells its digest.
    """

    def __init__(self, keep: Callable[[bytes], Digest]) -> None:
        self._keep = keep
        self._packs: list[Pack] = []
        self._places: dict[Digest, Place] = {}
        self._pieces: list[bytes] = []
        self._filled = 0

    def add(self, digest: Digest, data: bytes) -> Place:
        """Where these bytes, at most SMALL_BYTES, are or will be. Raises what `keep` raises."""
        known = self._places.get(digest)
        if known is not None:
            return known
        if self._filled + len(data) > MOST_PACK_BYTES:
            self._close()
        place = self._places[digest] = Place(pack=len(self._packs), at=self._filled)
        self._pieces.append(data)
        self._filled += len(data)
        if self._filled >= _LEAST_BYTES and ends_pack(digest, len(data)):
            self._close()
        return place

    def end(self) -> tuple[Pack, ...]:
        """All packs, kept."""
        if self._pieces:
            self._close()
        return tuple(self._packs)

    def _close(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        self._packs.append(Pack(digest=self._keep(data), size=len(data)))
        self._filled = 0


def ends_pack(digest: Digest, size: int) -> bool:
    """Whether a pack that is large enough ends with this file: one in so many bytes does, wherever it comes."""
    return int(digest[7:15], 16) * _SPREAD_BYTES < size << 32
