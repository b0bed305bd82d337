"""Which job among equals goes to a node that has its inputs already: what a record and a claim say of digests."""

from __future__ import annotations

from collections.abc import Iterable

from .job import Input

MOST_INPUTS = 8  # of a job that its record names


def short_hash(digest: str) -> str:
    """Eight digits: enough to guess by, as a wrong guess costs a fetch and no more."""
    return digest.removeprefix("sha256:")[:8]


def short_hashes(inputs: Iterable[Input]) -> list[str]:
    """Of a job's inputs, the largest first as far as sizes are known; at most MOST_INPUTS, each once."""
    sized: dict[str, int] = {}
    for one in inputs:
        if one.digest is not None:
            sized.setdefault(one.digest, one.size or 0)
        for member in one.members or ():
            sized.setdefault(member.digest, member.size)
    digests = sorted(sized, key=lambda digest: -sized[digest])
    return list(dict.fromkeys(map(short_hash, digests)))[:MOST_INPUTS]
