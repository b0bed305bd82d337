"""Which job among equals goes to a node that has its inputs already: what a record and a claim say of blobs."""

from __future__ import annotations

from collections.abc import Iterable

from .job import Input
from .seal import KeyRing

MOST_INPUTS = 8  # of a job that its record names


def short_hash(name: str) -> str:
    """Eight digits of a blob's name (`KeyRing.name`): enough to guess by, a wrong guess costs a fetch and no more."""
    return name[:8]


def short_hashes(inputs: Iterable[Input], ring: KeyRing) -> list[str]:
    """Of a job's inputs, the largest first as far as sizes are known; at most MOST_INPUTS, each once. ring: that of the
    job's tenant.
    """
    sized: dict[str, int] = {}
    for one in inputs:
        if one.digest is not None:
            sized.setdefault(one.digest, one.size or 0)
        for member in one.members or ():
            sized.setdefault(member.digest, member.size)
    digests = sorted(sized, key=lambda digest: -sized[digest])
    return list(dict.fromkeys(short_hash(ring.name(digest)) for digest in digests))[:MOST_INPUTS]
